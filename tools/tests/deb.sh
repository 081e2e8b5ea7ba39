#!/usr/bin/env bash
# Installs the package that `tandem cross --deb` wrote in an arm64 root under emulation, and looks at what a user
# of it finds: tools/tests/deb.sh PACKAGE (with the fixtures' model and bundle in it). Needs what arm64.sh needs.
set -euo pipefail
package=$(realpath "$1")
. "$(dirname "$0")/arm64.sh"

make_root bash-completion
cp "$package" "$root/root/tandem.deb"
inside apt-get install -y -qq /root/tandem.deb >"$work/apt" 2>&1 || { cat "$work/apt"; exit 1; }
[ "$(inside dpkg-query -W -f '${Status}' tandem)" = "install ok installed" ]
inside dpkg --verify tandem
[ -L "$root/etc/systemd/system/sockets.target.wants/tandem.socket" ]

# What the service runs, for one answer.
start=$(sed -n 's/^ExecStart=//p' "$root/usr/lib/systemd/system/tandem.service")
answer=$(inside bash -c "mkdir -m 700 /var/cache/tandem; $start --port 0 2>/root/log & pid=\$!
    until address=\$(sed -n 's/^listening on http:..//p' /root/log) && [ -n \"\$address\" ]; do
        kill -0 \$pid || { cat /root/log; exit 1; }; sleep 0.2; done
    body='{\"messages\": [{\"role\": \"user\", \"content\": \"This package contains the manual.\"}], \"temperature\": 0}'
    exec 3<>/dev/tcp/\${address%:*}/\${address##*:}
    printf 'POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s' \${#body} \"\$body\" >&3
    cat <&3; kill \$pid; wait \$pid")
grep -o '"content":"[^"]*"' <<<"$answer"
wanted=$(inside tandem run --model /usr/share/tandem/pocket-q8_0.gguf --bundle /usr/share/tandem/pocket.tandem \
    --compose summarize-fr --temp 0 --prompt "This package contains the manual." 2>/dev/null)
grep -qF "\"content\":\"$wanted\"" <<<"$answer"

# Every command that bash completes is there, and has a page in the manual.
commands=$(inside bash -c '. /usr/share/bash-completion/bash_completion
    . /usr/share/bash-completion/completions/tandem
    COMP_WORDS=(tandem "") COMP_CWORD=1 COMP_LINE="tandem " COMP_POINT=7
    _tandem tandem "" tandem; printf "%s\n" "${COMPREPLY[@]}"' | grep '^[a-z]' | grep -v '^help$')
[ "$(wc -l <<<"$commands")" -ge 15 ]
for command in $commands; do
    inside tandem "$command" --help >/dev/null
    gzip -dc "$root/usr/share/man/man1/tandem-$command.1.gz" | grep '^\.SH SYNOPSIS' >/dev/null
done
gzip -dc "$root/usr/share/man/man1/tandem.1.gz" | grep 'serve(1)' >/dev/null

# The same package again is an update; gone, it leaves nothing but what is asked to stay.
inside dpkg -i /root/tandem.deb >"$work/again"
inside apt-get purge -y -qq tandem >"$work/purge" 2>&1
for left in usr/bin/tandem usr/lib/systemd/system/tandem.service var/cache/tandem var/lib/tandem \
    etc/systemd/system/sockets.target.wants/tandem.socket etc/systemd/system/tandem.socket; do
    [ ! -e "$root/$left" ] && [ ! -L "$root/$left" ] || { echo "$left is left"; exit 1; }
done
echo "installed, asked, completed, described, removed: $(wc -w <<<"$commands") commands"
