"""Models of `transformers` with tiny layers of random weights, saved to folders as their authors save theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LINES = ["a low tone plays", "the middle tone", "a high tone sounds", "first and second hiss", "Rain, Thunder!"]


def save_tokenizer(folder: Path, words: int = 300) -> Any:
    """A byte-level tokenizer, trained on a few lines, with RoBERTa's special tokens."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(LINES, vocab_size=words, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    trained.save(str(folder / "tokenizer.json"))
    tokenizer = RobertaTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token="<s>", eos_token="</s>", sep_token="</s>", cls_token="<s>",
        unk_token="<unk>", pad_token="<pad>", mask_token="<mask>",
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    return tokenizer


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def _text(make: Callable[[int], Any]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        tokenizer = save_tokenizer(folder)
        torch.manual_seed(0)
        make(len(tokenizer)).save_pretrained(folder)
        return folder

    return build


def _roberta(words: int) -> Any:
    from transformers import RobertaConfig, RobertaModel

    return RobertaModel(RobertaConfig(vocab_size=words, max_position_embeddings=40, **SMALL))


def _mpnet(words: int) -> Any:
    from transformers import MPNetConfig, MPNetModel

    return MPNetModel(MPNetConfig(vocab_size=words, max_position_embeddings=40, **SMALL))


def _distilbert(words: int) -> Any:
    from transformers import DistilBertConfig, DistilBertModel

    return DistilBertModel(
        DistilBertConfig(vocab_size=words, max_position_embeddings=40, dim=32, n_layers=2, n_heads=2, hidden_dim=48)
    )


def _deberta(words: int) -> Any:
    from transformers import DebertaV2Config, DebertaV2Model

    return DebertaV2Model(DebertaV2Config(vocab_size=words, max_position_embeddings=40, type_vocab_size=0, **SMALL))


def _bert(words: int) -> Any:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(vocab_size=words, max_position_embeddings=40, **SMALL))


_MAKERS = {"roberta": _roberta, "mpnet": _mpnet, "distilbert": _distilbert, "deberta": _deberta, "bert": _bert}
TEXT_MODELS = {name: _text(make) for name, make in _MAKERS.items()}


def make_sentence_model(folder: Path) -> Path:
    """An MPNet with the pooling, dense layer and normalisation that sentence-transformers keeps beside a model."""
    from safetensors.torch import save_file

    TEXT_MODELS["mpnet"](folder)
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 38, "do_lower_case": False}))
    for path, _ in parts[1:3]:
        (folder / path).mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    dense = {"in_features": 32, "out_features": 20, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(dense))
    torch.manual_seed(1)
    save_file({"linear.weight": torch.randn(20, 32), "linear.bias": torch.randn(20)}, folder / "2_Dense" / "model.safetensors")
    return folder


def make_clap(folder: Path, *, fusion: bool = False, features: int = 16) -> Path:
    """A CLAP of two tiny towers, with its tokenizer and its feature extractor for windows of one second at 16 kHz."""
    from transformers import ClapAudioConfig, ClapConfig, ClapFeatureExtractor, ClapModel, ClapTextConfig

    tokenizer = save_tokenizer(folder)
    torch.manual_seed(0)
    audio = ClapAudioConfig(
        hidden_size=32, depths=[1, 1], num_attention_heads=[2, 2], patch_embeds_hidden_size=16, num_hidden_layers=2,
        num_mel_bins=16, spec_size=64, window_size=4, projection_dim=features,
        enable_fusion=fusion, fusion_type="aff_2d" if fusion else None,
        aff_block_r=2, patch_embed_input_channels=1,
    )  # fmt: skip
    text = ClapTextConfig(vocab_size=len(tokenizer), max_position_embeddings=40, projection_dim=features, **SMALL)
    config = ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=features)
    ClapModel(config).save_pretrained(folder)
    ClapFeatureExtractor(
        feature_size=16, sampling_rate=16000, hop_length=64, max_length_s=1, fft_window_size=256, frequency_max=8000,
        truncation="fusion" if fusion else "rand_trunc",
    ).save_pretrained(folder)  # fmt: skip
    return folder


def make_ast(folder: Path) -> Path:
    """A spectrogram transformer that hears 1.28 s at 16 kHz."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    torch.manual_seed(0)
    config = ASTConfig(patch_size=8, frequency_stride=8, time_stride=8, max_length=128, num_mel_bins=32, **SMALL)
    ASTModel(config).save_pretrained(folder)
    ASTFeatureExtractor(num_mel_bins=32, max_length=128).save_pretrained(folder)
    return folder


def make_whisper(folder: Path) -> Path:
    """A Whisper that hears 2 s."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=60, num_mel_bins=16, encoder_layers=2, encoder_attention_heads=2, decoder_layers=1, decoder_attention_heads=2,
        encoder_ffn_dim=48, decoder_ffn_dim=48, d_model=32, max_source_positions=100, max_target_positions=20,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16, chunk_length=2).save_pretrained(folder)
    return folder


def make_wavlm(folder: Path) -> Path:
    """A WavLM, which hears waveforms of any length."""
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

    torch.manual_seed(0)
    config = WavLMConfig(
        conv_dim=(16, 16, 16), conv_kernel=(10, 3, 2), conv_stride=(5, 4, 4), num_feat_extract_layers=3,
        feat_extract_norm="layer", num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, **SMALL,
    )  # fmt: skip
    WavLMModel(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return folder


AUDIO_MODELS = {"clap": make_clap, "ast": make_ast, "whisper": make_whisper, "wavlm": make_wavlm}
