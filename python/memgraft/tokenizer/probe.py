"""Texts that tell tokenizers apart: blanks, digits, apostrophes, letters of many scripts, code, symbols, long runs."""
# ruff: noqa: E501

_TEXTS = (
    "The quick brown fox jumps over the lazy dog. THE QUICK BROWN FOX; tHe qUiCk bRoWn",
    " one leading blank", "  two leading blanks", "one trailing blank ", "two trailing blanks  ", " ", "  ", "   ", "\n", "\t",
    "a b  c   d    e     f      g       h        i         j                j                                        k",
    "line\nline\n\nline\n\n\nline\r\nline\r\n\r\nline\rline \n line\n  line\t\ttab\t \ttab \t\n", "\n\n  x\n\n", "x \n\n\n",
    "0 1 12 123 1234 12345 123456 1234567 12345678 123456789 1234567890 00 000 0000 3.14 1,000,000 -5 1e10 0x1F 2nd 7a a7",
    "x1 x12 x123 x1234 1x 12x 123x 1234x $5 $50 50% #1 #12 (12) [12] 12:34:56 2024-01-31 1/2 v1.2.3",
    "it's I'm you're we've they'll he'd don't IT'S I'M YOU'RE WE'VE THEY'LL HE'D DON'T 's 'S 't 're 'LL ''s it''s rock'n'roll",
    "O'TOOLE O'Toole D'SOUZA D'Souza L'LEAU O'REILLY O'Reilly 'TIS 'tis 'SUP 'sup 'llama 'LLAMA 'mid 'MID 'DVE 'vex 'VEX 'redo",
    "it’s don’t ‘quoted’ “double” «guillemets» l'heure l’heure d'Artagnan O'Neil 'ſ ſ",
    "Hello, world! What? No... yes; (well) [maybe] {so} <tag> </tag> a.b a,b a;b a:b a-b a_b a/b a\\b a|b a&b a@b.c #t *x* ~y~",
    "!!! ??? ... ,,, --- === *** ### $$$ %%% ^^^ &&& ((( ))) ''' \"\"\" ``` ~~~ ___ -> => != == <= >= && || :: // /* */",
    " . , ! ? n't 's a . b , c ! d ? e do n't it 's I 'm we 've",
    "def f(x):\n    if x > 1:\n        return x**2\n\treturn {'a': [1, 2]}  # note\n\n\nclass A(B):\n    pass\n",
    "for (int i=0;i<10;++i){a[i]+=b->c;} camelCase PascalCase snake_case SCREAMING_CASE kebab-case HTTPServer iPhone",
    "https://example.org/path?query=1&other=2#part user@example.org C:\\dir\\file.txt ~/.config/x.y",
    "naïve café über Ångström façade résumé İstanbul ıI ß ẞ ŒUVRE œuvre ﬁ ﬂ ½ ² ³ ™ № Ⅷ ⅷ Ω Ω µ μ K K",
    "e\u0301 a\u0308 n\u0303 A\u030a o\u0302\u0323 \u0301 x\u0301\u0301 q\u0307\u0323 \u1100\u1161\u11a8 가 각",
    "中文文本 漢字と仮名、カタカナ ﾊﾝｶｸ ＡＢＣ １２３ 한국어 텍스트 。，！？「」 中a文1 abc中文123",
    "Привет мир ПРИВЕТ Ёж Ελληνικά ΣΊΣΥΦΟΣ σς עברית שָׁלוֹם العربية مُحَمَّد ١٢٣ हिन्दी क्षि १२३ ไทย ภาษา বাংলা தமிழ் ខ្មែរ ქართული Հայերեն አማርኛ",
    "😀 👍🏽 👨‍👩‍👧‍👦 🇩🇪 ❤️ ☃ ♥ ✓ → ∑ ∞ ≠ 𝔘𝔫𝔦 𝟙𝟚 𒀀 \U0001f9ff\U0001fae0",
    "a\u00a0b\u2003c\u3000d\u2009e\u200bf\u200cg\u200dh\ufeffi\u00adj\u2028k\u2029l\u0085m\u000bn\u000co\u180ep\u202fq",
    "\x00 \x01 \x07 \x1b[0m \x7f \u0080 \ue000 \ufffd \ufffd\ufffd",
    "▁ ▁a ▁▁ _ Ġ Ġa Ċ ## ##a @@ a@@ </w> a</w> <0x0A> <0xE2> Â Ã ĠĠ",
    "Donaudampfschifffahrtsgesellschaftskapitän antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "a" * 120, "ab" * 130, "thethethethe  the the  the", "1" * 40, "." * 40, "=" * 70, "\n" * 20, " " * 70, "中" * 30, "é" * 20,
)  # fmt: skip
PROBE_TEXTS = tuple("x" + text for text in _TEXTS)
"""Fixed for ever: another text here makes another fingerprint of every tokenizer."""
