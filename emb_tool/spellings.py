"""Names of other tools, and their equivalents in embtool.

An unknown flag, key or command is looked up among the names of sentence-transformers, transformers,
mergekit and optimum before similar spellings are searched.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

SETTINGS: dict[str, str] = {
    "lr": "learning_rate peak_lr max_lr",
    "epochs": "epoch num_epochs num_train_epochs n_epochs max_epochs",
    "texts": "text input inputs input_file input_path sentences corpus data dataset dataset_name "
    "dataset_path train_file train_data train_dataset documents docs calibration_data",
    "queries": "query query_file query_texts",
    "text_field": "text_column column column_name field text_key",
    "delimiter": "sep separator delim field_delimiter",
    "header": "headers has_header csv_header",
    "output": "out out_path output_dir output_path output_folder output_file outdir out_dir "
    "save_dir save_path save_to",
    "batch_tokens": "batch_size train_batch_size eval_batch_size per_device_train_batch_size "
    "per_device_eval_batch_size mini_batch_size bs",
    "grad_accumulation": "accumulate gradient_accumulation_steps grad_accum",
    "max_length": "max_seq_length max_seq_len max_len max_tokens sequence_length seq_length",
    "to": "max_seq_length max_position_embeddings max_length target_length context_length length",
    "warmup": "warmup_ratio warmup_steps num_warmup_steps",
    "max_grad_norm": "clip grad_clip gradient_clip_val",
    "weight_decay": "wd",
    "dims": "matryoshka_dims truncate_dim dim dimensions",
    "teacher": "teacher_model teacher_name teacher_model_name_or_path",
    "student": "student_model student_name student_model_name_or_path model model_name_or_path",
    "student_layers": "num_layers layers num_hidden_layers n_layers keep_layers layers_to_keep",
    "holdout": "validation_split eval_size dev_size test_size",
    "model": "models model_name model_name_or_path model_id model_path input_model m input",
    "models": "model model_name model_name_or_path model_id model_path m input",
    "reference": "baseline teacher original",
    "task": "tasks task_name benchmark dataset eval",
    "eval": "task tasks evaluate eval_dataset evaluator",
    "base": "base_model",
    "method": "merge_method quantization_method algorithm preset",
    "weights": "weight merge_weights alpha alphas",
    "out_dtype": "output_dtype",
    "shard_mb": "max_shard_size out_shard_size shard_size",
    "device": "devices device_map gpu_id",
    "dtype": "torch_dtype mixed_precision compute_dtype",
    "seed": "random_seed random_state manual_seed data_seed seed_value",
    "recipe": "config config_file config_path cfg yaml",
    "set": "override overrides",
    "overwrite": "force overwrite_output_dir exist_ok yes",
    "resume": "resume_from_checkpoint continue",
    "quiet": "silent no_progress disable_tqdm",
    "verbose": "debug verbosity log_level",
    "dry_run": "dryrun check plan simulate",
    "prompt_name": "prompt instruction prefix prompts",
    "store": "cache cache_dir cache_folder",
    "target": "size target_size",
    "max_bytes": "max_size",
    "min_retention": "threshold min_quality",
    "precision": "embedding_precision quantization",
    "concurrency": "num_workers workers",
    "limit": "max_samples num_samples max_train_samples max_eval_samples subset",
    "quick": "fast",
    "prune": "older_than days",
}
"""Names in other tools, by setting."""

METHODS: dict[str, str] = {
    "int": "quantize quantization rtn awq q8 q4",
    "float8": "fp8",
    "cast": "fp16 bf16 half float16 bfloat16",
    "rotate": "pca itq rotation",
    "truncate": "matryoshka mrl dim dims truncate_dim",
    "vocab": "vocabulary prune_vocab trim",
    "layers": "drop_layers prune_layers layer_drop",
    "linear": "average mean soup model_soup wise_ft lerp",
    "slerp": "nuslerp",
    "task_arithmetic": "task_vectors",
    "dare": "dare_ties dare_linear",
    "della": "della_linear",
    "breadcrumbs": "breadcrumbs_ties",
    "ntk": "dynamic rope_scaling ntk_aware",
    "pi": "position_interpolation interpolate",
    "sts": "stsb similarity",
    "retrieval": "beir mteb ir information_retrieval",
    "speed": "latency throughput",
}
"""Names in other tools, by method or task."""

VALUES: dict[str, str] = {
    "dtype fp16": "fp16 half float16",
    "dtype bf16": "bf16 bfloat16",
    "dtype fp32": "fp32 float32",
    "device cpu": "cpu use_cpu no_cuda",
    "device cuda": "cuda gpu use_gpu",
    "method int:bits=8": "load_in_8bit int8 quantize",
    "method int:bits=4": "load_in_4bit int4",
    "method float8": "fp8",
    "method truncate:dim=256": "pca",
}
"""Equivalent switches of other tools, by setting and value."""

COMMANDS: dict[str, str] = {
    "quantize": "compress MODEL -m int:bits=8 -o OUT",
    "convert": "compress MODEL -m cast:dtype=bf16 -o OUT",
    "export": "compress MODEL -m int:bits=4 --format compressed-tensors -o OUT",
    "truncate": "compress MODEL -m truncate:dim=256 -o OUT",
    "shrink": "compress MODEL --target 20MB -o OUT",
    "optimize": "compress MODEL --target 20MB -o OUT",
    "dequantize": "expand MODEL -o OUT",
    "unpack": "expand MODEL -o OUT",
    "train": "distill --teacher MODEL --student MODEL --texts FILE -o OUT",
    "fit": "distill --teacher MODEL --student MODEL --texts FILE -o OUT",
    "finetune": "distill --teacher MODEL --student MODEL --texts FILE -o OUT",
    "extend": "extend-context MODEL --to 2048 -o OUT",
    "lengthen": "extend-context MODEL --to 2048 -o OUT",
    "soup": "merge MODEL MODEL -o OUT",
    "blend": "merge MODEL MODEL -o OUT",
    "embed": "encode MODEL TEXTS -o vectors.npy",
    "evaluate": "eval MODEL --task sts:FILE",
    "benchmark": "eval MODEL --task speed",
    "test": "eval MODEL --task sts:FILE",
    "info": "inspect MODEL",
    "show": "inspect MODEL",
    "describe": "inspect MODEL",
    "summary": "inspect MODEL",
    "list": "methods",
    "ls": "methods",
    "compare": "report OUT OUT",
    "cache": "store",
    "env": "doctor",
    "check": "doctor",
    "version": "--version",
    "help": "COMMAND --help",
}
"""The equivalent embtool command, by command of other tools."""


def normalize(name: str) -> str:
    """Normalize a flag or key: `--learning-rate` is learning_rate."""
    return name.lstrip("-").replace("-", "_").lower()


def aliases_of(name: str, known: Iterable[str]) -> list[str]:
    """The settings or methods with that name in other tools, or here up to dashes.

    Args:
        name: A key, flag or method.
        known: The existing names, with `_` or `-`.

    Returns:
        At most two of `known`.
    """
    by_spelling = {normalize(one): one for one in known}
    normalized = normalize(name)
    aliases = [*SETTINGS.items(), *METHODS.items()]
    matches = [ours for ours, theirs in aliases if normalized in theirs.split()]
    return [by_spelling[ours] for ours in (normalized, *matches) if ours in by_spelling][:2]


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The aliases of a name, else names of `known` with a similar spelling."""
    by_spelling = {normalize(one): one for one in known}
    similar = get_close_matches(normalize(name), by_spelling, 2, 0.6)
    return aliases_of(name, by_spelling.values()) or [by_spelling[near] for near in similar]
