#!/usr/bin/env python3
"""Writes the tokenizers of this folder, the lines they are tried on, and what the reference libraries make of them.

    pip install tokenizers sentencepiece && ./make.py

Trains on text that every Debian with man pages in some languages, Python and C headers has; the committed files need not be
reproduced to the byte, only to be consistent with each other. Tests read the files and need none of this.
"""
import base64
import glob
import gzip
import io
import json
import os
import random

import sentencepiece
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers)

HERE = os.path.dirname(os.path.abspath(__file__))
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
BYTE_TOKENS = ["<0x%02X>" % b for b in range(256)]


def training_text():
    text = []
    for language in ("man1", "de/man1", "fr/man1", "ja/man1", "ru/man1", "zh_CN/man1", "es/man1"):
        room = 120000
        for name in sorted(glob.glob(f"/usr/share/man/{language}/*.gz")):
            if room <= 0:
                break
            with gzip.open(name, "rb") as file:
                text.append(file.read(room).decode("utf-8", "replace"))
            room -= len(text[-1])
    for pattern in ("/usr/lib/python3*/[a-h]*.py", "/usr/include/[a-m]*.h"):
        room = 200000
        for name in sorted(glob.glob(pattern)):
            if room > 0:
                with open(name, encoding="utf-8", errors="replace") as file:
                    text.append(file.read(room))
                room -= len(text[-1])
    return "".join(text).split("\n")


def lines(text):
    """Varied lines; bytes, some of them broken."""
    fixed = [
        "", " ", "  ", "\t", "\n", "\r\n", " \n \n\n  x", "Hello, world!", " leading", "trailing ", "   both   ",
        "don't I'LL we'Ve it's 'S 'tis", "naïve café", "naive cafe\u0301", "e\u0301\u0302\u0327 a\u030a Å",
        "İstanbul ǅ ß ẞ ſ ﬁ ﬆ Σς", "12345678901 3.14159 1,000,000 ½ ² ⅷ ٣٤٥ १२३", "x" * 600, "ab" * 300, "1" * 90,
        " " * 200 + "x", "\n" * 50, "a b " * 60, "你好，世界。今天天气不错", "日本語のテキスト、カタカナとひらがな", "한국어 텍스트 각각 각",
        "العربية نص مع تشكيل مُحَمَّد ١٢٣", "עברית עם נִקּוּד", "हिन्दी क्षत्रिय ज्ञान", "ภาษาไทยไม่มีช่องว่าง", "Ελληνικά και Кириллица",
        "👨‍👩‍👧‍👦 👩🏽‍💻 🏳️‍🌈 🇩🇪🇫🇷 ❤️ ☕", "😀😃😄 text 🎉", "\u200b\u200c\u200d\u2060\ufeff", "a\u00a0b\u2003c\u3000d\u1680e\u180ef\u0085g\u2028h",
        "\x00\x01\x02\x1b[31mred\x7f\x80\x9f", "tab\tsep\tvalues", "mixed\r\nline\rends\n", "▁already▁meta ▁", "Ġbyte Ċ level",
        "<|endoftext|>", "a<|endoftext|>b", " <|endoftext|> ", "<|endoftext|><|endoftext|>", "<|endoftex|>", "<|ENDOFTEXT|>",
        "[CLS] hi [SEP] [MASK] there[MASK]", "[mask] [ MASK ] [UNK]", "<s>text</s> <unk> <pad>", "<0x41><0x0A>", "##ing un##known",
        "newword NewWord newwords xnewword newword.", "  lefty  ", "righty   x", "both both  both", "Café CAFÉ cafe\u0301 added",
        "def f(x: int) -> str:\n    return f\"{x!r}\"  # comment\n", "for (int i = 0; i < n; ++i) { a[i] += b[i] * 0x1F; }",
        "SELECT * FROM t WHERE a <> 'b' AND c >= 1.5e-10;", "<div class=\"a\">&nbsp;&#39;</div>", "https://example.org/a?b=c&d=%20#frag",
        "\\begin{equation} \\frac{1}{2} \\end{equation}", "{\"key\": [1, 2.5, null], \"k2\": \"v\\n\"}", "$HOME/.config/*.toml | grep -v '^#'",
        "ＦＵＬＬ　ｗｉｄｔｈ　１２３", "①②③ ㈱ ㎏ ℡ ™ …", "𝓗𝓮𝓵𝓵𝓸 𝟙𝟚𝟛 𐍈", "\u1E9B\u0323", "\U0001F1E6\U0001F1E6\U0001F1E6", "\U0010FFFF\uFFFD\uE000",
        "\u0378 unassigned \u2FE0", "\u202Eright to left\u202C", "......!!!???---___***", "a.b,c;d:e!f?g", "“quotes” ‘single’ «guillemets» „low‟",
        "zero\u200dwidth", "soft\u00adhyphen", "Zürich, São Paulo, Łódź, Şişli", "\u0627\u0654 \u0623", "ㅎㅏㄴ 한", "क\u094d\u200dष", "\u1100\u1161\u11a8",
        "#hashtag @user $100 50% a&b c*d e^f ~g `h`", "((nested)) [[brackets]] {{braces}}", "THE QUICK BROWN FOX", "tHe QuIcK",
        "don\u2019t \u2018quoted\u2019", "word" + "\u0301" * 40, "\u00e9" * 120, "你" * 150, "🎉" * 50, "a" * 99 + " " + "b" * 100 + " " + "c" * 101,
    ]
    broken = [b"\xff\xfe broken", b"caf\xc3", b"\xe2\x82 euro cut \xe2\x82\xac", b"\xf0\x9f\x98 \xf0\x9f", b"\xc0\xaf\xed\xa0\x80\xf4\x90\x80\x80",
              b"a\x80b\xbfc", b"\xe4\xbd\xe4\xbd\xa0", b"\xf8\x88\x80\x80\x80 \xfe"]
    generator = random.Random(4)
    usual = [t for t in text if 20 < len(t) < 160]
    result = [t.encode() for t in fixed] + broken + [t.encode() for t in generator.sample(usual, 150)]
    alphabet = list("abcXYZ 019 \n\t.,'-▁") + ["é", "e\u0301", "ß", "你", "👍🏽", "\u200d", "ﬁ", "ا", "<s>", "[MASK]", "\u00a0", "newword", "١"]
    for _ in range(60):
        result.append("".join(generator.choice(alphabet) for _ in range(generator.randrange(1, 40))).encode())
    return result


def byte_level(text, vocabulary, split=None, prefix=False, **options):
    tokenizer = Tokenizer(models.BPE(**options))
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=split is None)
    tokenizer.pre_tokenizer = last if split is None else pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), last])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=["<|endoftext|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def make_gpt2(text):
    tokenizer = byte_level(text, 1800)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def make_llama3(text):
    tokenizer = byte_level(text, 1500, LLAMA3, ignore_merges=True)
    tokenizer.add_special_tokens(["<|begin_of_text|>"])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))])])
    return tokenizer


def make_qwen(text):
    tokenizer = byte_level(text, 1500, LLAMA3.replace("{1,3}", ""))
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def make_roberta(text):
    tokenizer = byte_level(text, 1500, prefix=True)
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>", "<unk>", AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", tokenizer.token_to_id("</s>")), ("<s>", tokenizer.token_to_id("<s>")))
    return tokenizer


def make_bert(text):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(text, trainers.WordPieceTrainer(vocab_size=2500, special_tokens=special, show_progress=False,
                                                                  limit_alphabet=400))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.enable_truncation(24, strategy="longest_first")
    tokenizer.enable_padding(length=16, pad_id=0, pad_token="[PAD]")
    return tokenizer


def make_added(text):
    tokenizer = make_bert(text)
    tokenizer.add_tokens([AddedToken("newword", single_word=True), AddedToken("lefty", lstrip=True), AddedToken("righty", rstrip=True),
                          AddedToken("both", lstrip=True, rstrip=True), AddedToken("Café", normalized=True),
                          AddedToken("ab", normalized=False), AddedToken("abX", normalized=False)])
    return tokenizer


def make_unigram(text):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    trainer = trainers.UnigramTrainer(vocab_size=2000, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(text[::3], trainer)
    data = json.loads(tokenizer.to_str())
    data["model"]["vocab"] += [[t, -30.0] for t in BYTE_TOKENS]
    data["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(data))


def make_charsmap(text):
    """XLM-R-like: a precompiled map of characters, words by blanks, Unigram without byte tokens."""
    rules = ["%X\t%s" % (ord(c), " ".join("%X" % ord(d) for d in to)) for c, to in
             [("ﬁ", "fi"), ("\u212b", "\u00e5"), ("①", "1"), ("…", "..."), ("\u00a0", " "), ("\u3000", " "), ("\u200b", ""), ("½", "1\u20442"),
              ("Ａ", "A"), ("Ｆ", "F"), ("\t", " "), ("\n", " "), ("\x7f", ""), ("ß", "ss"), ("한", "han")]]
    rules += ["65 301\tE9", "61 30A\tE5", "D A\t20", "1F468 200D\t1F468"]
    with open("/tmp/sluice-rules.tsv", "w") as file:
        file.write("\n".join(rules) + "\n")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(text[:2000]), model_writer=model, vocab_size=600,
                                             normalization_rule_tsv="/tmp/sluice-rules.tsv", minloglevel=2)
    from sentencepiece import sentencepiece_model_pb2 as proto
    parsed = proto.ModelProto.FromString(model.getvalue())
    tokenizer = Tokenizer(models.Unigram([(p.piece, p.score) for p in parsed.pieces], 0, False))
    data = json.loads(tokenizer.to_str())
    data["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(
        parsed.normalizer_spec.precompiled_charsmap).decode()}
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}]}
    data["decoder"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    data["added_tokens"] = [{"id": i, "content": t, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
                             "normalized": False} for i, t in enumerate(["<unk>", "<s>", "</s>"])]
    return Tokenizer.from_str(json.dumps(data))


def make_llama2(text):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=1800, special_tokens=["<unk>", "<s>", "</s>"] + BYTE_TOKENS, show_progress=False,
                                  limit_alphabet=300)
    tokenizer.train_from_iterator(text, trainer)
    data = json.loads(tokenizer.to_str())
    data["model"].update(byte_fallback=True, fuse_unk=True)
    data["added_tokens"] = [t for t in data["added_tokens"] if t["id"] < 3]
    data["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    return tokenizer


def store(name, value):
    with open(os.path.join(HERE, name), "w") as file:
        json.dump(value, file, ensure_ascii=True, separators=(",", ":"))
        file.write("\n")


def expected(tokenizer, texts, decode_all=True):
    """Ids of every text; decoded where that differs from the text; byte offsets of the first ones."""
    limits = tokenizer.truncation, tokenizer.padding
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids, decoded, offsets = [], {}, []
    for i, text in enumerate(texts):
        encoding = tokenizer.encode(text)
        ids.append(encoding.ids)
        back = tokenizer.decode(encoding.ids, skip_special_tokens=True)
        if back != text:
            decoded[str(i)] = back
        if i < 60:
            places = [0]
            for c in text:
                places.append(places[-1] + len(c.encode()))
            offsets.append([places[p] for span in encoding.offsets for p in span])
    result = {"ids": ids, "decoded": decoded, "offsets": offsets}
    pair = tokenizer.encode("Hello world, how are you?", "The second text is longer than the first one is.")
    result["pair"] = {"ids": pair.ids, "type_ids": pair.type_ids}
    if limits[0]:
        tokenizer.enable_truncation(limits[0]["max_length"], strategy=limits[0]["strategy"])
        tokenizer.enable_padding(length=limits[1]["length"], pad_id=limits[1]["pad_id"], pad_token=limits[1]["pad_token"])
        short, long = tokenizer.encode("short"), tokenizer.encode("a long text " * 9)
        cut = tokenizer.encode("Hello world, how are you? " * 3, "The second text is longer than the first one is. " * 2)
        result["limited"] = {"short": short.ids, "attention": short.attention_mask, "long": long.ids, "pair": cut.ids}
    return result


def make_gguf(text, texts):
    """A SentencePiece BPE model as GGUF stores it, and SentencePiece's ids."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text[:6000]), model_writer=model, model_type="bpe", vocab_size=1200, byte_fallback=True,
        character_coverage=0.99, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        allow_whitespace_only_pieces=True)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    tokens, scores, types = [], [], []
    for i in range(processor.get_piece_size()):
        tokens.append(processor.id_to_piece(i))
        scores.append(processor.get_score(i))
        types.append(2 if processor.is_unknown(i) else 3 if processor.is_control(i) else 6 if processor.is_byte(i) else 1)
    # A zero byte ends SentencePiece's text, and control tokens in a text are ours to find.
    usable = [t if not any(s in t for s in ("\x00", "<s>", "</s>", "<unk>")) else "" for t in texts]
    return {"tokens": tokens, "scores": scores, "types": types, "ids": [processor.encode(t) for t in usable]}


def main():
    text = training_text()
    corpus = lines(text)
    texts = [t.decode("utf-8", "replace") for t in corpus]
    store("corpus.json", [t.decode() if t.decode("utf-8", "replace").encode() == t else {"hex": t.hex()} for t in corpus])
    for name, make in (("gpt2", make_gpt2), ("llama3", make_llama3), ("qwen", make_qwen), ("roberta", make_roberta), ("bert", make_bert),
                       ("added", make_added), ("unigram", make_unigram), ("charsmap", make_charsmap), ("llama2", make_llama2)):
        data = json.loads(make(text).to_str())
        if name == "gpt2":  # as older files are: merges as lines, the model without its type
            del data["model"]["type"]
            data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]
        store(name + ".json", data)
        store(name + ".expected.json", expected(Tokenizer.from_str(json.dumps(data)), texts))
        print(name, os.path.getsize(os.path.join(HERE, name + ".json")))
    store("gguf-llama.json", make_gguf(text, texts))


if __name__ == "__main__":
    main()
