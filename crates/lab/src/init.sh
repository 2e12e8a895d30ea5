#!/bin/sh
# Process 1 of the lab's guest. The host's half of the conversation below is control.rs.
export PATH=/bin HOME=/root

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
ip link set lo up

# Where the kernel started with one CPU (emulator.rs says why), the others come now. A word of the
# kernel's command line that the kernel does not know becomes a variable here.
[ "$CPUS" = 1 ] || for online in /sys/devices/system/cpu/cpu*/online; do
    [ ! -e "$online" ] || [ "$(cat "$online")" = 1 ] || echo 1 > "$online"
done

while read -r module parameters; do
    # The parameters are as many words as there are.
    insmod "/lib/modules/$module.ko" $parameters || echo "init: module $module did not load"
done < /etc/modules

# One request per line: RUN TOKEN SECONDS COMMAND, one answer per line: DONE TOKEN STATUS =STDOUT
# =STDERR, with command and outputs in base64. What a command prints goes through files, so that
# what it leaves running in the background holds nothing up.
#
# Not by process 1 itself: whatever outlives its parent becomes its child, `timeout`'s own watcher
# among them, and when that ends while a line is being read, busybox forgets what it has of the line.
(
    exec 3<> /dev/ttyS1
    stty raw -echo <&3
    echo READY >&3
    while :; do
        read -r word token seconds command <&3 || { sleep 1; continue; }
        [ "$word" = RUN ] || continue
        printf %s "$command" | base64 -d > /tmp/.command
        timeout -s KILL "$seconds" sh /tmp/.command < /dev/null > /tmp/.stdout 2> /tmp/.stderr 3>&-
        status=$?
        echo "DONE $token $status =$(head -c 1048576 /tmp/.stdout | base64 -w 0)" \
            "=$(head -c 65536 /tmp/.stderr | base64 -w 0)" >&3
        rm -f /tmp/.stdout /tmp/.stderr
    done
)
# Not reached; but without it, a shell may take the place of the one that is to wait.
poweroff -f
