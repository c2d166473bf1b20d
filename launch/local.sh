#!/usr/bin/env bash
# mgpt @stage@ on this machine: written by mgpt submit, @written@, from @version@.
#   mgpt status output=@output@    says where it is
# The command starts its ranks with torchrun (torch.distributed.run). Ctrl-C finishes the step and
# saves; run this script again to resume. A second Ctrl-C ends it at once.
set -uo pipefail
cd @folder@ || exit 1
launch=@launch@
own=$launch start=local
@setup@
@environment@
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE # of the shell that submitted
echo "local $(hostname) $$" >"$launch/job"
exec @command@
