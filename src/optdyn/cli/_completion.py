"""``optdyn completion``: scripts for shells, made from the declared options."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from optdyn.cli._options import parse_settings
from optdyn.cli._settings import SETTINGS, CompletionSettings
from optdyn.cli.main import COMMANDS, PROGRAM
from optdyn.errors import UserError
from optdyn.pretrained import PRETRAINED

LONGEST = 60
"""Characters of an option's help that a shell shows."""


@dataclasses.dataclass(frozen=True)
class Option:
    """An option as a shell sees it: a switch, or with a value of ``choices``, a path, or other."""

    flag: str
    help: str
    takes_value: bool
    is_path: bool
    choices: tuple[str, ...]


def command(argv: list[str]) -> None:
    """Parse ``argv`` and print the script for the shell it names."""
    shell = argv[0] if argv and not argv[0].startswith("-") else None
    parse_settings(CompletionSettings, "completion SHELL", argv[1:] if shell else argv)
    if shell not in SCRIPTS:
        raise UserError(f"shell: {shell or 'none'} is not allowed ({', '.join(SCRIPTS)})")
    print("\n".join(SCRIPTS[shell]()))


def options(name: str) -> list[Option]:
    """The options of the command ``name``, in all its forms, each once."""
    found = {"--help": Option("--help", "show this message and exit", False, False, ())}
    for kind in SETTINGS[name]:
        for field in dataclasses.fields(kind):
            flag, metadata = f"--{field.name.replace('_', '-')}", field.metadata
            found.setdefault(
                flag,
                Option(
                    flag=flag,
                    help=metadata["help"][:LONGEST],
                    takes_value=metadata["parse"] is not None,
                    is_path=metadata.get("metavar") == "PATH",
                    choices=tuple(metadata.get("choices") or ()),
                ),
            )
    return list(found.values())


def arguments(name: str) -> tuple[str, ...]:
    """What may stand before the options of the command ``name`` (files aside)."""
    return {"analyze": tuple(PRETRAINED), "completion": tuple(SCRIPTS)}.get(name, ())


def bash() -> Iterator[str]:
    """The lines for bash."""
    yield f"# bash completion: source <({PROGRAM} completion bash)"
    yield "_optdyn() {"
    yield '    local word="${COMP_WORDS[COMP_CWORD]}" name="${COMP_WORDS[COMP_CWORD-1]}"'
    yield "    # --name=value is three words to bash"
    yield '    if [[ $word == "=" ]]; then word=""'
    yield '    elif [[ $name == "=" ]]; then name="${COMP_WORDS[COMP_CWORD-2]}"; fi'
    yield "    if (( COMP_CWORD == 1 )); then"
    yield f'        COMPREPLY=($(compgen -W "{" ".join(COMMANDS)} --help --version" -- "$word"))'
    yield "        return"
    yield "    fi"
    yield "    COMPREPLY=()"
    yield '    case "${COMP_WORDS[1]} $name" in'
    for name in COMMANDS:
        for option in (option for option in options(name) if option.takes_value):
            if option.choices:
                values = " ".join(option.choices)
                act = f'COMPREPLY=($(compgen -W "{values}" -- "$word"))'
            else:
                act = "_optdyn_files" if option.is_path else ":"
            yield f'        "{name} {option.flag}") {act}; return ;;'
    yield "    esac"
    yield '    case "${COMP_WORDS[1]}" in'
    for name in COMMANDS:
        words = " ".join([*arguments(name), *(option.flag for option in options(name))])
        files = "_optdyn_files; " if name == "analyze" else ""
        yield f'        {name}) {files}COMPREPLY+=($(compgen -W "{words}" -- "$word")) ;;'
    yield "    esac"
    yield "}"
    yield "_optdyn_files() {"
    yield "    local IFS=$'\\n'"
    yield "    compopt -o filenames 2>/dev/null"
    yield '    COMPREPLY=($(compgen -f -- "$word"))'
    yield "}"
    yield f"complete -F _optdyn {PROGRAM}"


def zsh() -> Iterator[str]:
    """The lines for zsh."""
    yield f"#compdef {PROGRAM}"
    yield f"# zsh completion: source <({PROGRAM} completion zsh)"
    yield "_optdyn() {"
    yield "    local -a commands=("
    for name, summary in COMMANDS.items():
        yield f"        {_quoted(f'{name}:{summary}')}"
    yield "    )"
    yield "    if (( CURRENT == 2 )); then _describe command commands; return; fi"
    yield "    local name=$words[2]"
    yield "    shift words; (( CURRENT-- ))"
    yield "    case $name in"
    for name in COMMANDS:
        words = [_zsh_option(option) for option in options(name)]
        if arguments(name):
            files = "; _files" if name == "analyze" else ""
            action = f"{{compadd {' '.join(arguments(name))}{files}}}"
            words.append(_quoted(f"1:argument:{action}"))
        yield f"        {name}) _arguments {' '.join(words)} ;;"
    yield "    esac"
    yield "}"
    yield 'if [[ "${funcstack[1]}" == _optdyn ]]; then _optdyn "$@"; '
    yield f"else compdef _optdyn {PROGRAM}; fi"


def _zsh_option(option: Option) -> str:
    told = option.help.replace("[", "(").replace("]", ")").replace(":", ",")
    if not option.takes_value:
        return _quoted(f"{option.flag}[{told}]")
    values = f"({' '.join(option.choices)})" if option.choices else ""
    return _quoted(f"{option.flag}=[{told}]:value:{'_files' if option.is_path else values or ' '}")


def fish() -> Iterator[str]:
    """The lines for fish."""
    yield f"# fish completion: {PROGRAM} completion fish > ~/.config/fish/completions/optdyn.fish"
    yield f"complete -c {PROGRAM} -f"
    for name, summary in COMMANDS.items():
        yield f"complete -c {PROGRAM} -n __fish_use_subcommand -a {name} -d {_fish(summary)}"
    for name in COMMANDS:
        begin = f"complete -c {PROGRAM} -n '__fish_seen_subcommand_from {name}'"
        if arguments(name):
            files = " -F" if name == "analyze" else ""
            yield f"{begin}{files} -a '{' '.join(arguments(name))}'"
        for option in options(name):
            kind = ""
            if option.takes_value:
                values = f" -a '{' '.join(option.choices)}'" if option.choices else ""
                kind = " -r -F" if option.is_path else f" -x{values}"
            yield f"{begin} -l {option.flag[2:]}{kind} -d {_fish(option.help)}"


def _quoted(text: str) -> str:
    """``text`` in single quotes, for bash and zsh."""
    inside = text.replace("'", "'\\''")
    return f"'{inside}'"


def _fish(text: str) -> str:
    """``text`` in single quotes, for fish."""
    inside = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{inside}'"


SCRIPTS = {"bash": bash, "zsh": zsh, "fish": fish}
