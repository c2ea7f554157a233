package loader

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const sshChild = "ssh-child"

// TestSSHChild is what the other tests here run below an sshd: with the
// arguments ssh-child, dmz interface, network namespace and file for the answer.
func TestSSHChild(t *testing.T) {
	args := flag.Args()
	if len(args) != 4 || args[0] != sshChild {
		return
	}
	answer := "fine"
	ns, err := openNamespace(args[2])
	if err == nil {
		cfg := Config{Zones: []Zone{{Name: "lan", Role: RoleInternal, Interfaces: []string{"eth3"}}, {Name: "sensors", Role: RoleDMZ, Interfaces: []string{"none", args[1]}}}}
		err = ns.do(func() error { return lockOut(cfg, nil, ns) })
	}
	var ce *ConfigError
	switch {
	case errors.As(err, &ce):
		answer = "refused: " + ce.Path + ": " + ce.Err
	case err != nil:
		answer = "failed: " + err.Error()
	}
	// Whoever waits for the file finds all of it.
	if err := os.WriteFile(args[3]+".new", []byte(answer), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(args[3]+".new", args[3]); err != nil {
		t.Fatal(err)
	}
}

// sshLab is a gateway with an sshd and a client on eth2.
type sshLab struct {
	dir, client, binary string
}

func newSSHLab(t *testing.T) *sshLab {
	t.Helper()
	for _, tool := range []string{"/usr/sbin/sshd", "ssh", "ssh-keygen", "setsid"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v: scripts/deps.sh installs it", err)
		}
	}
	lab := &sshLab{dir: t.TempDir()}
	gateway := fmt.Sprintf("tgssh-%d-gw", os.Getpid())
	lab.client = fmt.Sprintf("tgssh-%d-client", os.Getpid())
	for _, name := range []string{gateway, lab.client} {
		resolveRun(t, "", "ip", "netns", "add", name)
		t.Cleanup(func() { resolveRun(t, "", "ip", "netns", "del", name) })
	}
	resolveRun(t, `link set lo up
link add eth2 type veth peer name eth0 netns `+lab.client+`
link add eth3 type veth peer name peer3
addr add 192.168.77.1/24 dev eth2
addr add 2001:db8:77::1/64 dev eth2 nodad
link add link eth2 name above type macvlan mode bridge
addr add 192.168.78.1/24 dev above
link set eth2 up
link set above up
`, "ip", "-n", gateway, "-batch", "-")
	resolveRun(t, `addr add 192.168.77.2/24 dev eth0
addr add 192.168.78.2/24 dev eth0
addr add 2001:db8:77::2/64 dev eth0 nodad
link set eth0 up
`, "ip", "-n", lab.client, "-batch", "-")

	var err error
	if lab.binary, err = os.Executable(); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"host", "user"} {
		resolveRun(t, "", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(lab.dir, key))
	}
	config := fmt.Sprintf("Port 2222\nHostKey %[1]s/host\nAuthorizedKeysFile %[1]s/user.pub\nStrictModes no\nPidFile none\n"+
		"UsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\nUseDNS no\n", lab.dir)
	if err := os.WriteFile(filepath.Join(lab.dir, "config"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	// sshd wants a folder in /run; it gets one that only it sees.
	sshd := exec.Command("ip", "netns", "exec", gateway, "unshare", "-m", "sh", "-c",
		"mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && exec /usr/sbin/sshd -D -e -f "+filepath.Join(lab.dir, "config"))
	log, err := os.Create(filepath.Join(lab.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	sshd.Stdout, sshd.Stderr = log, log
	if err := sshd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = sshd.Process.Kill()
		_ = sshd.Wait()
		log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("sshd says:\n%s", text)
		}
	})
	lab.waitForSSHD(t)
	return lab
}

func (lab *sshLab) waitForSSHD(t *testing.T) {
	t.Helper()
	ns, err := openNamespace(lab.client)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.close()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := ns.do(func() error {
			c, err := net.DialTimeout("tcp", "192.168.77.1:2222", time.Second)
			if err == nil {
				c.Close()
			}
			return err
		})
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no sshd: %v", err)
		}
	}
}

// run has lockOut called below a login to host; {} in shell is its command.
func (lab *sshLab) run(t *testing.T, host, shell, dmz, netns string) string {
	t.Helper()
	answer := filepath.Join(lab.dir, strings.ReplaceAll(t.Name(), "/", "-"))
	child := fmt.Sprintf("%s -test.run '^TestSSHChild$' -- %s %s '%s' %s", lab.binary, sshChild, dmz, netns, answer)
	script := strings.ReplaceAll(shell, "{}", child)
	// The connection stays until the answer is there.
	script += fmt.Sprintf("; n=0; until [ -e %s ] || [ $n = 200 ]; do sleep 0.1; n=$((n+1)); done", answer)
	out, err := exec.Command("ip", "netns", "exec", lab.client, "ssh", "-tt", "-F", "/dev/null", "-o", "BatchMode=yes",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-i", filepath.Join(lab.dir, "user"),
		"-p", "2222", "root@"+host, script).CombinedOutput()
	text, e := os.ReadFile(answer)
	if e != nil {
		t.Fatalf("no answer from the child: %v\n%s", err, out)
	}
	return string(text)
}

func TestSSHCutOff(t *testing.T) {
	lab := newSSHLab(t)
	// The same network behind an interface of the same name.
	twin := resolveNetns(t, "link add eth2 type veth peer name peer\naddr add 192.168.77.1/24 dev eth2\nlink set eth2 up\n")
	const refused = `refused: zones.sensors.interfaces[1]: your SSH connection from %s`
	v4, v6 := fmt.Sprintf(refused, "192.168.77.2:"), fmt.Sprintf(refused, "[2001:db8:77::2]:")
	tmux := "TERM=xterm env -u SSH_CONNECTION tmux -f /dev/null -S " + lab.dir + "/tmux new-session \"{}\""
	for _, tc := range []struct{ name, host, shell, dmz, netns, want string }{
		{"plain", "192.168.77.1", "{}", "eth2", "", v4},
		{"no environment", "192.168.77.1", "env -i {}", "eth2", "", v4},
		{"new session", "192.168.77.1", "env -i setsid -w sh -c \"{}; true\"", "eth2", "", v4},
		{"IPv6", "2001:db8:77::1", "env -i {}", "eth2", "", v6},
		{"daemon, IPv6", "2001:db8:77::1", "setsid -f {}", "eth2", "", v6},
		{"daemon with SSH_CONNECTION", "192.168.77.1", "setsid -f {}", "eth2", "", v4},
		{"daemon with a dead SSH_CONNECTION", "192.168.77.1", "SSH_CONNECTION='192.168.77.2 9 192.168.77.1 2222' setsid -f {}", "eth2", "", "fine"},
		{"tmux", "192.168.77.1", tmux, "eth2", "", v4},
		{"stacked on dmz", "192.168.78.1", "{}", "eth2", "", fmt.Sprintf(refused, "192.168.78.2:")},
		{"only what is below", "192.168.77.1", "{}", "above", "", "fine"},
		{"another interface", "192.168.77.1", "{}", "eth3", "", "fine"},
		{"another namespace", "192.168.77.1", "{}", "eth2", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), twin.fd), "fine"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := exec.LookPath("tmux"); err != nil && tc.shell == tmux {
				t.Fatalf("%v: scripts/deps.sh installs it", err)
			}
			got := lab.run(t, tc.host, tc.shell, tc.dmz, tc.netns)
			if !strings.HasPrefix(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if strings.HasPrefix(tc.want, "refused") {
				for _, part := range []string{` comes in on "eth2", and zone "sensors"`, "--force"} {
					if !strings.Contains(got, part) {
						t.Errorf("%q lacks %q", got, part)
					}
				}
			}
		})
	}
}

func TestSSHCutOffWithoutSSH(t *testing.T) {
	t.Setenv("SSH_CONNECTION", "")
	ns := resolveNetns(t, gatewayLinks)
	if err := ns.do(func() error { return lockOut(gatewayConfig(), nil, ns) }); err != nil {
		t.Error(err)
	}
}

func TestParseProcAddr(t *testing.T) {
	// Taken from /proc/net/tcp6 of a little-endian machine; big-endian ones
	// print the same addresses in the other order.
	for text, want := range map[string]string{
		"014DA8C0:08AE":                         "192.168.77.1:2222",
		"B80D0120000077000000000001000000:08AE": "[2001:db8:77::1]:2222",
		"0000000000000000FFFF0000024DA8C0:8C4E": "192.168.77.2:35918",
	} {
		got, ok := parseProcAddr(text)
		if !ok || got.String() != want {
			t.Errorf("%s: %v (%v), want %s", text, got, ok, want)
		}
	}
	for _, text := range []string{"", "014DA8C0", "014DA8:08AE", "014DA8C0:xyz", "zz:1"} {
		if got, ok := parseProcAddr(text); ok {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}
