//! How one value is stored.

/// The storage types of a value table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueDtype {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    Fp16,
    /// IEEE single precision.
    Fp32,
    /// fp8 e4m3 (no infinities) with one fp32 scale per row and tap.
    Fp8E4m3,
    /// int8 with one fp32 scale per tap and channel.
    Int8,
}

impl ValueDtype {
    /// All dtypes, in the order of the documentation.
    pub const ALL: [Self; 5] = [Self::Bf16, Self::Fp16, Self::Fp32, Self::Fp8E4m3, Self::Int8];

    /// Bytes per value.
    pub fn size(self) -> usize {
        match self {
            Self::Fp32 => 4,
            Self::Bf16 | Self::Fp16 => 2,
            Self::Fp8E4m3 | Self::Int8 => 1,
        }
    }

    /// The name in `bank.json` and in Python.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
            Self::Fp32 => "fp32",
            Self::Fp8E4m3 => "fp8_e4m3",
            Self::Int8 => "int8",
        }
    }

    /// The name in a safetensors header.
    pub fn safetensors_name(self) -> &'static str {
        match self {
            Self::Bf16 => "BF16",
            Self::Fp16 => "F16",
            Self::Fp32 => "F32",
            Self::Fp8E4m3 => "F8_E4M3",
            Self::Int8 => "I8",
        }
    }

    /// The dtype that a safetensors header calls `name`.
    pub fn from_safetensors_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.safetensors_name() == name)
    }

    /// Shape of the `scales` tensor beside `rows` rows, if the dtype has one.
    pub fn scales_shape(self, rows: u64, taps: u64, value_dim: u64) -> Option<[u64; 2]> {
        match self {
            Self::Fp8E4m3 => Some([rows, taps]),
            Self::Int8 => Some([taps, value_dim]),
            Self::Bf16 | Self::Fp16 | Self::Fp32 => None,
        }
    }
}
