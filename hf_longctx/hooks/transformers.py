"""The hooks that make plain `from_pretrained` and `generate` do the right thing for a model that carries a method.

Each is called in the place of a method of transformers, which it gets first, and does nothing more for a model without
a method. `startup.HOOKS` is the table; `startup.uninstall` takes all of them back.

1. `PreTrainedModel.post_init`: a model whose config has the key gets its methods as it is built. Can go when
   transformers calls code that is registered for an entry of a config, as it does for quantisation.
2. `GenerationMixin._prepare_cache_for_generation`: a model with a method gets that method's cache, also where the
   checkpoint names another. Can go when a model says itself which layers its cache has.
3. `GenerationMixin._prefill`: the text is read again where the cache has dropped tokens of a row that ended early and
   now continues; with `look_up_last`, only the last tokens of the prompt look others up. Can go when `generate` gives
   all ids to a cache that asks for them, and an argument to the model's forward in a prefill alone.
4. `GenerationMixin._get_stopping_criteria`: no warning of the trained length where a method reads beyond it. Can go
   when that warning can be turned off in the generation config.
5. `GenerationMixin._valid_auto_compile_criteria`: `generate` takes number 6 for caches of fixed buffers, those after a
   shared prefix included. Can go with number 6.
6. `PreTrainedModel.get_compiled_call`: single tokens come from a CUDA graph, without compiling anything. Can go when
   transformers replays caches that are not static.
7. `GenerationMixin._extract_generation_mode_kwargs`: decoding methods of hf_longctx get the streamer and the tokenizer.
   Can go when `generate` gives them to every `custom_generate` callable.
8. `Pipeline.check_model_type`: a pipeline that knows a class knows the `LongCtx` class of it, and logs no error about
   an unsupported model. Can go when transformers looks for subclasses.
9. `ContinuousMixin.init_continuous_batching`: `generate_batch` is refused where a model keeps a cache of its own; what
   transformers says names an attention implementation, which does not help. Can go when transformers asks a model
   whether its cache can be paged.

There are four more, elsewhere: the descriptor `startup.Key` on `PreTrainedConfig`, which keeps and checks the key (can
go with number 1); the attribute `look_up_last` of `GenerationConfig`, None, so that `generate` takes an argument of
this name (can go with number 3); the names of `startup.REGISTRIES`, which transformers has registries for; and once
peft is imported, wraps around its saving and loading, so that an adapter carries its base's methods (`peft.py`).
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

from transformers import PreTrainedConfig
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.stopping_criteria import MaxLengthCriteria

from ..anatomy import find_decoder
from ..attention.caches import adopt_all
from ..attention.method import AttentionMethod
from ..attention.state import STATE
from ..attention.turns import check_new_tokens, read_again_if_needed
from ..attention.without import first_to_look_up, looking_up_from
from ..cache.stock import shares_prefix
from ..generation.cuda_graph import can_replay, forget, graph_forward
from ..hub.shim import drop_ours
from ..method import KEY, read_key
from ..patch import applied
from ..sharing.model import is_shared
from ..upstream.caches import cache_in, check_cache_kind

TAKES_ALL = "takes_all_of_generate"  # marks a decoding method of hf_longctx


def keyed_post_init(stock: Any, self: Any) -> None:
    """Hook 1: apply the methods that the config names."""
    stock(self)
    if applied(self):
        _share_config(self)  # an inner model, built before, has the method already
    elif getattr(self.config, KEY, None):
        _apply_key(self)


def keyed_prepare_cache(
    stock: Any, self: Any, generation_config: Any, model_kwargs: Any, generation_mode: Any, *args: Any, **kwargs: Any
) -> Any:
    """Hook 2: put the method's layers into the cache, and refuse what it cannot do."""
    methods = _attention_methods(self)
    if methods or shares_prefix(cache_in(model_kwargs)):
        _replace_cache(self, generation_config)
    if methods:
        _check_generation(methods[0], generation_config, generation_mode)
    result = stock(self, generation_config, model_kwargs, generation_mode, *args, **kwargs)
    cache = cache_in(model_kwargs)
    if methods and cache is not None:
        adopt_all(vars(find_decoder(self))[STATE], cache)
    if methods or shares_prefix(cache):
        forget(cache)
    return result


def keyed_prefill(
    stock: Any, self: Any, input_ids: Any, generation_config: Any, model_kwargs: Any, *args: Any, **kwargs: Any
) -> Any:
    """Hook 3: let the text be read again where needed, and tokens look others up only where wanted."""
    first = first_to_look_up(self, generation_config, input_ids, model_kwargs)
    if _attention_methods(self):
        decoder = find_decoder(self)
        cache, mask = cache_in(model_kwargs), model_kwargs.get("attention_mask")
        columns = getattr(generation_config, "_mask_length", -1) if mask is None else mask.shape[1]
        check_new_tokens(cache, input_ids, model_kwargs.get("inputs_embeds"), columns)
        read_again_if_needed(vars(decoder)[STATE], decoder, cache, input_ids, mask)
    with looking_up_from(self, first):
        return stock(self, input_ids, generation_config, model_kwargs, *args, **kwargs)


def keyed_stopping(stock: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Hook 4: leave out the warning of "performance degradation" beyond the trained length."""
    found = stock(self, *args, **kwargs)
    if any(method.endless for method in _attention_methods(self)):
        for criterion in found:
            if isinstance(criterion, MaxLengthCriteria):
                criterion.max_position_embeddings = None
    return found


def keyed_criteria(stock: Any, self: Any, model_kwargs: Any, generation_config: Any) -> bool:
    """Hook 5: whether single tokens can come from a graph."""
    cache = cache_in(model_kwargs)
    if not _attention_methods(self) and not shares_prefix(cache):
        return stock(self, model_kwargs, generation_config)
    return not generation_config.disable_compile and can_replay(self, cache)


def keyed_compiled_call(stock: Any, self: Any, compile_config: Any) -> Any:
    """Hook 6: the forward that replays a graph."""
    carries = _attention_methods(self) or is_shared(self)
    return graph_forward(self) if carries else stock(self, compile_config)


def keyed_mode_kwargs(
    stock: Any, self: Any, custom_generate: Any, kwargs: Any, synced_gpus: Any, assistant_model: Any, streamer: Any
) -> Any:
    """Hook 7: add the arguments that `generate` keeps from custom callables."""
    if not getattr(custom_generate, TAKES_ALL, False):
        return stock(self, custom_generate, kwargs, synced_gpus, assistant_model, streamer)
    given = {name: kwargs.get(name) for name in ("tokenizer", "assistant_tokenizer")}
    given |= {"assistant_model": assistant_model, "streamer": streamer}
    found = stock(self, custom_generate, kwargs, synced_gpus, assistant_model, streamer)
    return found | {name: value for name, value in given.items() if value is not None}


def keyed_model_type(stock: Any, self: Any, supported_models: Any) -> None:
    """Hook 8: look for the stock class's name."""
    known_as = getattr(type(self.model), "stock_class", None)
    if known_as is None:
        stock(self, supported_models)
        return
    # only the class of the model and the task are asked for
    stock(SimpleNamespace(model=type(known_as.__name__, (), {})(), task=self.task), supported_models)


def keyed_continuous(stock: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Hook 9: refuse what needs a paged cache."""
    holder = next((f"a model with {method!r}" for method in _attention_methods(self)), None)
    if holder or is_shared(self):
        raise ValueError(
            f"generate_batch (continuous batching): {holder or 'a model with a shared prefix'} keeps a cache of its "
            f"own, and continuous batching needs transformers' paged one. Use model.generate with a padded batch, or "
            f"{'undo the method first: hf_longctx.undo(model)' if holder else 'leave the block of the prefix first'}."
        )
    return stock(self, *args, **kwargs)


def _attention_methods(model: Any) -> list[AttentionMethod]:
    return [patch.method for patch in applied(model) if isinstance(patch.method, AttentionMethod)]


def _apply_key(model: Any) -> None:
    methods = read_key(getattr(model.config, KEY))
    anchors: list[Any] = [method.anchor(model) for method in methods]
    copies: dict[int, Any] = {}  # the caller's config may build other models
    for module in model.modules():
        if isinstance(vars(module).get("config"), PreTrainedConfig):
            module.config = copy.deepcopy(module.config, copies)
    # the entry is the method's own to write, so that undoing the method leaves none behind
    for config in (model.config, *(anchor.config for anchor in anchors)):
        vars(config).pop(KEY, None)
    drop_ours(model.config)  # the stock class would save it, without the file that it leads to
    for method, anchor in zip(methods, anchors, strict=True):
        method._apply(anchor, model, own_configs=False)


def _share_config(model: Any) -> None:
    """Give an outer model the config that its inner model got of its own in `_apply_key`."""
    callers, decoder = model.config, applied(model)[0].model
    if callers is decoder.config:
        return
    inner = (vars(module).get("config") for module in model.modules() if module is not model)
    own = next((config for config in inner if type(config) is type(callers) and config is not callers), None)
    if own is None:  # a composite config around the text decoder's
        outer = vars(callers).get(KEY)
        if outer is not None and read_key(outer) != [patch.method for patch in applied(model)]:
            raise ValueError(
                f"the config asks for {read_key(outer)} and its text config for "
                f"{[patch.method for patch in applied(model)]}. Keep the entry of the text config only."
            )
        own = copy.deepcopy(callers, {id(callers.get_text_config(decoder=True)): decoder.config})
        vars(own).pop(KEY, None)
        drop_ours(own)
    for module in model.modules():
        if vars(module).get("config") is callers:
            module.config = own
    for patch in applied(model):
        patch.method.surround(patch, model)


def _replace_cache(model: Any, generation_config: Any) -> None:
    """Override a checkpoint's kind of cache (Gemma's "hybrid", "static"); ValueError for one that a call asks for."""
    holder = "a model with a method of hf_longctx, or with a shared prefix,"
    check_cache_kind(generation_config.cache_implementation, model.generation_config.cache_implementation, holder)
    generation_config.cache_implementation = None


def _check_generation(method: AttentionMethod, generation_config: Any, mode: Any) -> None:
    if mode == GenerationMode.ASSISTED_GENERATION:
        raise ValueError(
            f"assisted decoding (an assistant model or prompt_lookup_num_tokens) must take tokens back out of the "
            f"cache, which the one of {method.name} cannot do. Generate without it."
        )
