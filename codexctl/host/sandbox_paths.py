"""What the sandbox shows and hides by default: tables of paths, and nothing that acts.

The home folder itself is not shown: what stands in HOME_READABLE is, read-only. HOME_HIDDEN matters
where something larger is shown, above all a workspace that contains the home.
"""

from __future__ import annotations

# The system: shown read-only where it is there, links as links.
SYSTEM_READABLE = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix",
    "/gnu/store", "/snap", "/home/linuxbrew/.linuxbrew", "/run/current-system",
    "/var/lib/ca-certificates", "/var/lib/dpkg/status", "/var/cache/fontconfig",
    "/sys/devices/system",
)  # fmt: skip

# As root the mode of a file does not keep its owner's secrets: what others cannot read here is
# masked. A tree of more entries than this is not shown to root at all.
SYSTEM_SCANNED = ("/etc", "/opt", "/usr/local/etc")
MAX_SCANNED_ENTRIES = 100_000

# A workspace in or at one of these would give away the machine or mean nothing.
NO_WORKSPACE_BELOW = ("/proc", "/sys", "/dev", "/boot", "/etc", "/bin", "/sbin", "/lib", "/lib64",
                      "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64")  # fmt: skip
NO_WORKSPACE_AT = ("/", "/usr", "/usr/local", "/usr/share", "/var", "/var/lib", "/run")

# A link from among the credentials into one of these leads to no secret of the person.
SYSTEM_PUBLIC = ("/usr", "/etc", "/opt", "/nix", "/gnu", "/proc", "/dev", "/sys")

# Toolchains and the settings that a shell and git read. Folders that hold both a toolchain and a
# token are named by their parts.
HOME_READABLE = (
    ".bashrc", ".bash_profile", ".bash_login", ".bash_aliases", ".bash_logout", ".profile",
    ".zshrc", ".zshenv", ".zprofile", ".zlogin", ".oh-my-zsh", ".kshrc", ".cshrc", ".tcshrc",
    ".login", ".config/fish", ".inputrc", ".terminfo", ".vimrc", ".vim", ".config/nvim",
    ".tmux.conf", ".gitconfig", ".config/git", ".config/starship.toml", ".editorconfig",
    ".tool-versions", ".config/mise", ".dircolors",
    ".local/bin", ".local/lib", ".local/pipx", ".local/opt", ".local/go",
    ".local/share/uv/python", ".local/share/uv/tools", ".local/share/pipx",
    ".local/share/pnpm", ".local/share/mise", ".local/share/rtx", ".local/share/fnm",
    ".local/share/man", ".local/share/bash-completion", ".local/share/zinit",
    ".local/share/virtualenv", ".local/share/hatch", ".local/share/nvm",
    ".local/state/nix", ".nix-profile", ".nix-defexpr", ".linuxbrew",
    ".pyenv", ".virtualenvs", ".poetry", ".local/share/pypoetry", ".pixi", ".rye/shims",
    ".rye/tools", ".rye/py", ".rye/self", ".rye/env",
    "miniconda3", "anaconda3", "miniforge3", "mambaforge", "micromamba", ".conda",
    ".nvm", ".fnm", ".volta", ".bun", ".deno", ".nodenv", ".npm-global", ".npm-packages",
    ".yarn/bin", ".config/yarn/global",
    ".cargo", ".rustup", ".goenv", ".gvm", "go/bin", "go/pkg", "sdk",
    ".rbenv", ".rvm", ".gem/ruby", ".asdf", ".sdkman", ".jenv", ".jabba", ".m2/repository",
    ".m2/wrapper", ".gradle/wrapper", ".ghcup", ".cabal/bin", ".stack/programs", ".opam",
    ".elan", ".juliaup", ".swiftly", ".dotnet", ".phpenv", ".composer/vendor",
    ".config/composer/vendor", ".mix/archives", ".krew/bin", ".plenv", ".perl5", "perl5",
    ".luarocks", ".moon", ".proto", ".flutter", "flutter",
)  # fmt: skip

# Credentials. A final slash marks a folder: where it is missing and could be made later inside a
# writable workspace, an empty one is made so that it can be masked.
HOME_HIDDEN = (
    ".ssh/", ".aws/", ".gnupg/", ".azure/", ".kube/", ".config/gh/", ".config/gcloud/",
    ".netrc", "_netrc", ".docker/config.json", ".codex/auth.json", ".git-credentials",
    ".config/git/credentials", ".pypirc", ".npmrc", ".yarnrc", ".yarnrc.yml",
    ".codexctl",
    ".cargo/credentials", ".cargo/credentials.toml", ".local/share/uv/credentials",
    ".gem/credentials", ".bundle/config", ".m2/settings.xml", ".m2/settings-security.xml",
    ".gradle/gradle.properties", ".composer/auth.json", ".config/composer/auth.json",
    ".config/pypoetry/auth.toml", ".rye/credentials", ".hex", ".condarc", ".conda/aau_token",
    ".terraform.d", ".terraformrc", ".pulumi/credentials.json", ".vault-token",
    ".config/glab-cli", ".config/hub", ".config/doctl", ".config/hcloud", ".config/linode-cli",
    ".oci", ".config/op", ".config/sops", ".config/rclone", ".config/containers/auth.json",
    ".config/helm", ".config/stripe", ".config/heroku", ".config/netlify", ".fly", ".wrangler",
    ".config/configstore", ".config/github-copilot", ".config/1Password", ".config/Bitwarden",
    ".claude/.credentials.json", ".claude.json", ".gemini", ".config/openai",
    ".cache/huggingface/token", ".huggingface", ".kaggle", ".databrickscfg", ".snowflake",
    ".dbt", ".s3cfg", ".boto",
    ".pgpass", ".my.cnf", ".mylogin.cnf", ".password-store", ".local/share/keyrings",
    ".local/share/kwalletd", ".gnome2/keyrings", ".pki", ".Xauthority", ".ICEauthority",
    ".mozilla", ".thunderbird", ".config/google-chrome", ".config/chromium",
    ".config/BraveSoftware", ".config/microsoft-edge", ".config/Signal", ".electrum", ".bitcoin",
    ".bash_history", ".zsh_history", ".zhistory", ".python_history", ".node_repl_history",
    ".psql_history", ".mysql_history", ".sqlite_history", ".lesshst",
    ".local/share/fish/fish_history", ".config/fish/fish_history", ".config/fish/fish_variables",
)  # fmt: skip

# Files that a later login or session of the person runs: in a workspace that contains the home
# they stay read-only, as the toolchains do.
HOME_PROTECTED = (".config/systemd", ".config/autostart", ".pam_environment", ".xprofile",
                  ".xsessionrc", ".xinitrc", ".local/share/systemd", ".config/environment.d",
                  ".codex", ".config/codex")  # fmt: skip

# Variables of the login environment that move credentials: the variable and a path below it.
HIDDEN_BY_VARIABLE = (
    ("CODEX_HOME", "auth.json"), ("CODEXCTL_HOME", ""), ("AWS_SHARED_CREDENTIALS_FILE", ""),
    ("AWS_CONFIG_FILE", ""), ("GNUPGHOME", ""), ("KUBECONFIG", ""),
    ("DOCKER_CONFIG", "config.json"), ("NETRC", ""), ("CLOUDSDK_CONFIG", ""),
    ("AZURE_CONFIG_DIR", ""), ("GH_CONFIG_DIR", ""), ("NPM_CONFIG_USERCONFIG", ""),
    ("GOOGLE_APPLICATION_CREDENTIALS", ""), ("PGPASSFILE", ""), ("CARGO_HOME", "credentials"),
    ("CARGO_HOME", "credentials.toml"), ("PASSWORD_STORE_DIR", ""),
)  # fmt: skip

# Variables of the login environment that name a toolchain's folder, and a path below it.
READABLE_BY_VARIABLE = (
    *((name, "") for name in (
        "PYENV_ROOT", "NVM_DIR", "FNM_DIR", "VOLTA_HOME", "BUN_INSTALL", "DENO_INSTALL",
        "PNPM_HOME", "CARGO_HOME", "RUSTUP_HOME", "GOROOT", "JAVA_HOME", "SDKMAN_DIR",
        "RBENV_ROOT", "ASDF_DIR", "ASDF_DATA_DIR", "MISE_DATA_DIR", "UV_PYTHON_INSTALL_DIR",
        "UV_TOOL_DIR", "DOTNET_ROOT", "ANDROID_HOME",
    )),
    # Its src is the person's own.
    ("GOPATH", "bin"), ("GOPATH", "pkg"),
)  # fmt: skip
