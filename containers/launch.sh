# shellcheck shell=sh
# What both launchers are made of. They set root, role (train or comfyui) and dockerfile first.

: "${root:?}" "${role:?}" "${dockerfile:?}"
# shellcheck source=containers/say.sh
. "$root/containers/say.sh"
# shellcheck source=containers/options.sh
. "$root/containers/options.sh"
# shellcheck source=containers/engine.sh
. "$root/containers/engine.sh"
# shellcheck source=containers/preflight.sh
. "$root/containers/preflight.sh"
# shellcheck source=containers/models.sh
. "$root/containers/models.sh"
# shellcheck source=containers/native.sh
. "$root/containers/native.sh"
