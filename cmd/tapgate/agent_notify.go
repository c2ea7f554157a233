package main

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// notifyPatience is how long a systemd that does not read keeps the agent from its work.
const notifyPatience = 100 * time.Millisecond

// notifier tells systemd how the agent is, by sd_notify(3); nobody without systemd.
type notifier struct {
	log    *slog.Logger
	socket string
	ready  sync.Once
}

func newNotifier(log *slog.Logger) *notifier {
	return &notifier{log: log, socket: os.Getenv("NOTIFY_SOCKET")}
}

// working is told with every look. The watchdog (WatchdogSec= of the unit, which must
// be well above 5 s) ends an agent that hangs.
func (n *notifier) working() {
	n.ready.Do(func() { n.say("READY=1") })
	n.say("WATCHDOG=1")
}

// reloading is for Type=notify-reload.
func (n *notifier) reloading() {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) == nil {
		n.say(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000))
	}
}

func (n *notifier) say(state string) {
	if n.socket == "" {
		return
	}
	// "@" is the abstract namespace, for Go as for systemd.
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err == nil {
		_ = c.SetWriteDeadline(time.Now().Add(notifyPatience))
		_, err = c.Write([]byte(state))
		c.Close()
	}
	if err != nil {
		n.log.Debug("systemd was not told", "error", err)
	}
}
