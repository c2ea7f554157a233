package loader

import (
	"log/slog"
	"os"
)

// Changed marks those lines of a Follower's log that tell what was changed, so that a
// record can be kept of them.
var Changed = slog.Bool("changed", true)

// SSHPeer is the other end of the SSH connection that this process was started
// through, as "192.0.2.7:50122", wherever its sshd runs; "" if there is none. sudo, su,
// tmux and screen are looked through.
func SSHPeer() string {
	conns, err := sshConnections(os.Getpid(), 0)
	if err != nil || len(conns) == 0 {
		return ""
	}
	return conns[0].peer.String()
}
