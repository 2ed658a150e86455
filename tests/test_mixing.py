"""mix64 against numbers that splitmix64 is known to give."""

import numpy as np

from memgraft.mixing import GAMMA, mix64


def test_it_is_the_output_function_of_splitmix64():
    # The generator begun at 1234567, by its authors' code (also the test vector of Java's and Rust's versions).
    states = np.array([(1234567 + step * GAMMA) % 2**64 for step in range(1, 6)], np.uint64)
    assert mix64(states).tolist() == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip
