package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tapgate/loader"
	"tapgate/test/lab"
)

// leaseScript does what the scripts of DHCP clients do with a lease; firstNew says which
// address is changed first where another one comes.
const leaseScript = `#!/bin/sh
# udhcpc calls this with what happened, and the lease in the environment.
own() { ip -4 -o addr show dev "$interface" scope global | awk '{print $4}'; }
case "$1" in
deconfig)
	[ -n "$FIRST_NEW" ] || ip -4 addr flush dev "$interface" scope global
	;;
bound | renew)
	before=$(own)
	if [ "$before" != "$ip/$mask" ]; then
		if [ -n "$FIRST_NEW" ]; then
			ip addr add "$ip/$mask" dev "$interface"
			for a in $before; do ip addr del "$a" dev "$interface"; done
			ip addr replace "$ip/$mask" dev "$interface"
		else
			ip -4 addr flush dev "$interface" scope global
			ip addr add "$ip/$mask" dev "$interface"
		fi
	fi
	ip route replace default via "$router" dev "$interface"
	;;
esac
echo "$1 $ip $(date +%s%N)" >>"$LEASE_LOG"
`

// dhcp is a server outside and a client at the gateway's eth0.
type dhcp struct {
	f      *followed
	dir    string
	server *lab.Cmd
	client *lab.Cmd
}

// daemon starts something that runs until it is ended with the test, or before.
func (f *followed) daemon(h *lab.Host, env []string, name string, args ...string) *lab.Cmd {
	f.t.Helper()
	c := h.Command(context.Background(), name, args...)
	var said lockedText
	c.Stdout, c.Stderr, c.Env = &said, &said, append(os.Environ(), env...)
	if err := c.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		f.endDaemon(c)
		if f.t.Failed() {
			f.t.Logf("%s said:\n%s", name, &said)
		}
	})
	return c
}

// endDaemon ends it, if it has not ended yet.
func (f *followed) endDaemon(c *lab.Cmd) {
	f.t.Helper()
	if err := c.Process.Signal(syscall.SIGTERM); err == nil {
		_ = c.Wait() // by our signal
	} else if !errors.Is(err, os.ErrProcessDone) {
		f.t.Error(err)
	}
}

// serve has the server give the gateway this address from now on, and no other.
func (d *dhcp) serve(a netip.Addr) {
	d.f.t.Helper()
	if d.server != nil {
		d.f.endDaemon(d.server)
	}
	leases := filepath.Join(d.dir, "leases."+a.String())
	d.server = d.f.daemon(d.f.out[0], nil, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--pid-file=",
		"--log-facility=-", "--interface=eth0", "--bind-interfaces", "--dhcp-authoritative", "--no-ping", "--dhcp-leasefile="+leases,
		fmt.Sprintf("--dhcp-range=%s,%s,255.255.255.0,2m", a, a), "--dhcp-option=option:router,"+d.f.out[0].Addr.String())
}

// leased waits until the client's script has been called for this address, and says when
// it ended.
func (d *dhcp) leased(a netip.Addr) (at time.Time) {
	d.f.t.Helper()
	retry(d.f.t, func() error {
		log, err := os.ReadFile(filepath.Join(d.dir, "log"))
		if err != nil {
			return err
		}
		lines := strings.Split(strings.TrimSpace(string(log)), "\n")
		var what, address string
		var ns int64
		if _, err := fmt.Sscan(lines[len(lines)-1], &what, &address, &ns); err != nil || address != a.String() || what == "deconfig" {
			return fmt.Errorf("the client has not got %s; it did:\n%s", a, log)
		}
		at = time.Unix(0, ns)
		return nil
	})
	return at
}

// renews has the client ask the server, as when its lease is half over.
func (d *dhcp) renews() {
	d.f.t.Helper()
	if err := d.client.Process.Signal(syscall.SIGUSR1); err != nil {
		d.f.t.Fatal(err)
	}
}

// A provider gives the gateway another address by DHCP: a real server, a real client, and
// scripts in both manners. All flows with it, without anybody's doing.
func TestAgentFollowDHCP(t *testing.T) {
	t.Parallel()
	for name, firstNew := range map[string]string{"old address away first": "", "new address there first": "1"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFollowed(t, loader.AttachAuto, followConfig)
			d := &dhcp{f: f, dir: f.Dir}
			script := filepath.Join(d.dir, "lease")
			if err := os.WriteFile(script, []byte(leaseScript), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := f.Gateway.Sysctl("net/ipv4/conf/eth0/promote_secondaries", "1"); err != nil {
				t.Fatal(err)
			}
			own := f.outside(false)
			d.serve(own)
			d.client = f.daemon(f.Gateway, []string{"FIRST_NEW=" + firstNew, "LEASE_LOG=" + filepath.Join(d.dir, "log")},
				"udhcpc", "--foreground", "--interface", "eth0", "--script", script, "--request", own.String(), "--timeout", "1", "--tryagain", "1")
			d.leased(own)
			f.resumes("the address that it had, by DHCP", func() {})
			for _, next := range []string{"203.0.113.71", "203.0.113.72"} {
				a := netip.MustParseAddr(next)
				f.disown("IPv4")
				d.serve(a) // and refuses what it does not know
				d.renews()
				f.resumed("another address by DHCP: "+next, d.leased(a))
				if got := f.outsides()[0].Addr(); got != a {
					t.Errorf("words come from %s, want %s", got, a)
				}
			}
			f.sameOutside("renewed", func() {
				f.resumes("the lease is renewed, and the address stays", d.renews)
			})
		})
	}
}
