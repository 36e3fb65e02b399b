"""Scripts by which shells complete verbs and options. They start no Python."""

from __future__ import annotations

from collections.abc import Mapping

from multimae_eo.cli.parts import Verb
from multimae_eo.errors import ConfigError, did_you_mean

_BASH = """_multimae_eo() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" verb="${{COMP_WORDS[1]}}"
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{verbs} --help --version" -- "$word"))
        return
    fi
    local options=""
    case "$verb" in
{cases}
    esac
    if [[ "$word" == -* ]]; then
        COMPREPLY=($(compgen -W "$options --help --debug" -- "$word"))
    else
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}}
complete -o filenames -F _multimae_eo multimae-eo
"""


def script(shell: str, verbs: Mapping[str, Verb]) -> str:
    """The completion script of ``bash``, ``zsh`` or ``fish``; ConfigError for another."""
    options = {name: _options(verb) for name, verb in verbs.items()}
    if shell == "fish":
        return _fish(verbs, options)
    if shell not in ("bash", "zsh"):
        raise ConfigError(f"no shell {shell!r}; {did_you_mean(shell, ['bash', 'zsh', 'fish'])}")
    cases = "\n".join(f'        {n}) options="{" ".join(o)}" ;;' for n, o in options.items())
    bash = _BASH.format(verbs=" ".join(verbs), cases=cases)
    if shell == "bash":
        return bash
    return (
        f"autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n{bash}"
    )


def _options(verb: Verb) -> list[str]:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    verb[0](parser)
    return sorted(o for o in parser._option_string_actions if o.startswith("--") and o != "--help")


def _fish(verbs: Mapping[str, Verb], options: Mapping[str, list[str]]) -> str:
    lines = []
    for name, (_, _, about) in verbs.items():
        said = about.replace("'", "\\'")
        lines.append(f"complete -c multimae-eo -n __fish_use_subcommand -a {name} -d '{said}'")
        lines += [
            f"complete -c multimae-eo -n '__fish_seen_subcommand_from {name}' -l {o[2:]}"
            for o in options[name]
        ]
    return "\n".join(lines) + "\n"
