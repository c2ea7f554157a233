package main

import (
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// A systemd that does not read keeps the agent from nothing.
func TestNotifyUnread(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	var log strings.Builder
	n := newNotifier(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	for range 10000 { // the socket's queue is far shorter
		if n.working(); strings.Contains(log.String(), "systemd was not told") {
			return
		}
	}
	t.Errorf("the socket takes all that comes: %s", &log)
}
