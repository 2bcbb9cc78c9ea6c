"""What a model class of transformers becomes with methods: arguments at loading, and what its folder says."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig, PreTrainedModel

from ..hub import shim
from ..hub.adapter import DOWNLOAD
from ..hub.configs import extend_config
from ..method import LongContextMethod, read_key
from ..patch import applied

# what says where a config comes from, which loading the weights needs as well
_PLACE = (*DOWNLOAD, "gguf_file", "proxies", "trust_remote_code")
# what a config would take for itself, although it is for the loading of the weights
_WEIGHTS = ("dtype", "torch_dtype", "quantization_config", "distributed_config")


class LongCtx:
    """What a stock model class gets before it: methods at loading, and a dual-mode folder at saving.

    A model has the methods that its config names, or that `from_pretrained(..., methods=...)` gives it; without either
    it is the stock model. `save_pretrained`, and with it `push_to_hub` and `Trainer`, write a folder in which the stock
    class is named and `trust_remote_code=True` gives this one (`hub/shim.py`); once the methods are undone, a stock
    folder.
    """

    stock_class: ClassVar[type[PreTrainedModel]]
    _auto_class = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        methods: LongContextMethod | list[LongContextMethod] | tuple[LongContextMethod, ...] | None = None,
        config: PreTrainedConfig | str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the stock class's, with methods.

        Args:
            pretrained_model_name_or_path: A folder or a Hub id.
            *model_args: As the stock class takes them.
            methods: One or several, applied in this order, in the place of those that the config names; none at all,
                `()`, gives the stock model. None: those that the config names.
            config: As the stock class takes it.
            **kwargs: As the stock class takes them.

        Raises:
            ValueError: `methods` is no method, or one that this model refuses.
        """
        if methods is not None:
            given = list(methods) if isinstance(methods, (list, tuple)) else [methods]
            config, kwargs = _with_methods(cls, pretrained_model_name_or_path, given, config, kwargs)
        if config is not None:
            kwargs["config"] = _part_for(cls, config)
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)  # type: ignore[misc]

    @classmethod
    def _from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> Any:
        return super()._from_config(_part_for(cls, config), **kwargs)  # type: ignore[misc]

    def post_init(self) -> None:
        """As the stock class's, which hook 1 of `hooks/transformers.py` lets apply the methods that the config names.

        Raises:
            RuntimeError: The hooks are not in place, and this would be the stock model.
        """
        super().post_init()  # type: ignore[misc]
        model: Any = self
        entry = None if applied(model) else shim.entry_in(model.config.to_dict())
        if entry is not None and read_key(entry):
            raise RuntimeError(
                f"the config of this {type(self).__name__} names {read_key(entry)}, and the hooks that apply methods "
                f"have been taken back by hf_longctx.uninstall(). Call hf_longctx.install() before you load it."
            )

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As the stock class's; the folder is a dual-mode one while the model has methods.

        Args:
            save_directory: As the stock class takes it.
            is_main_process: As the stock class takes it.
            state_dict: As the stock class takes it.
            push_to_hub: False; `model.push_to_hub(repo_id)` publishes the folder once it is complete.
            *args: As the stock class takes them.
            **kwargs: As the stock class takes them.

        Raises:
            ValueError: `push_to_hub` is set.
        """
        if push_to_hub:
            raise ValueError(
                f"save_pretrained({str(save_directory)!r}, push_to_hub=True) would publish the folder before it is "
                f"complete. Call model.push_to_hub(repo_id), or hf_longctx.hub.push, which sends the tokenizer and a "
                f"card in the same commit."
            )
        given = (save_directory, is_main_process, state_dict, False, *args)
        result = super().save_pretrained(*given, **kwargs)  # type: ignore[misc]
        model: Any = self
        # the config of the model is as after saving the stock class, and may be saved alone
        model.config.architectures = shim.stock_names(model.config.architectures)
        # every process of a parallel run calls this, and one of them writes
        if model.should_save_on_this_rank(is_main_process):
            shim.finish(os.fspath(save_directory))
        return result

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Nothing: transformers' own would copy this file of hf_longctx into every folder that is saved.

        A class that somebody derives from one of these is code to be copied, as any other.
        """
        if not _is_made(cls):
            super().register_for_auto_class(auto_class)  # type: ignore[misc]

    # transformers treats classes that are not its own as unknown code: no conversion of older weights, and no choice of
    # attention where it does not find it in the source of the class's module. These have nothing but its own code.
    @classmethod
    def is_custom_code(cls) -> bool:
        """As the stock class."""
        asked: Any = cls.stock_class if _is_made(cls) else super()
        return bool(asked.is_custom_code())

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return bool(cls.stock_class._can_set_attn_implementation())

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return bool(cls.stock_class._can_set_experts_implementation())


def _is_made(cls: type) -> bool:
    """Whether it is one of these classes, not one that somebody has derived from it."""
    return cls.__module__ == __package__


def _part_for(cls: Any, config: Any) -> Any:
    """The text config inside a composite one where the class is of a text model, as transformers' Auto classes do it.

    They do so for their own classes only: with `trust_remote_code=True` the composite config arrives here.
    """
    if not isinstance(config, PreTrainedConfig) or config.sub_configs.get("text_config") is not cls.config_class:
        return config
    text = copy.deepcopy(config.get_text_config())
    if getattr(config, "quantization_config", None) is not None:
        text.quantization_config = config.quantization_config
    return text


def _with_methods(
    cls: Any, path: Any, methods: list[Any], config: Any, kwargs: dict[str, Any]
) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The config with these methods, and the arguments that are left when it has taken those that are its own."""
    if not isinstance(config, PreTrainedConfig):
        place = path if config is None else config
        if place is None:
            raise ValueError("methods= needs a config: give a folder, a Hub id or config=.")
        if (Path(place) / "adapter_config.json").is_file() and not (Path(place) / "config.json").is_file():
            raise ValueError(
                f"{str(place)!r} is an adapter, and methods= changes its base. Load the base with methods=, then "
                f"PeftModel.from_pretrained(base, {str(place)!r})."
            )
        where = {name: kwargs.pop(name) for name in _PLACE if name in kwargs}
        weights = {name: kwargs.pop(name) for name in _WEIGHTS if name in kwargs}
        config, kwargs = cls.config_class.from_pretrained(place, return_unused_kwargs=True, **where, **kwargs)
        kwargs |= where | weights
    return extend_config(config, *methods), kwargs
