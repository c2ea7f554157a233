// Package packaging installs, uses and purges the packages that scripts/package.sh
// makes, in a Debian root that holds nothing but what every one does.
package packaging

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"tapgate/test/builds"
	"tapgate/test/lab"
)

const repository = "../.."

// waitLong bounds what a busy machine does: compile, unpack, fetch.
const waitLong = 10 * time.Minute

// sh runs a line of shell here.
func sh(t *testing.T, line string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitLong)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", append([]string{"-euo", "pipefail", "-c", line, "bash"}, args...)...)
	cmd.Dir = repository
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", line, args, err, out)
	}
	return string(out)
}

// packages makes those of this machine's architecture.
func packages(t *testing.T) (deb, rpm string) {
	t.Helper()
	out := t.TempDir()
	sh(t, `scripts/package.sh --version 1.2.3 --out "$1" --arch "$2"`, out, runtime.GOARCH)
	for pattern, file := range map[string]*string{"*.deb": &deb, "*.rpm": &rpm} {
		found, _ := filepath.Glob(filepath.Join(out, pattern))
		if len(found) != 1 {
			t.Fatalf("%s: made %q", pattern, found)
		}
		*file = found[0]
	}
	return deb, rpm
}

// debianRoot unpacks a minimal Debian, which is fetched once and kept in the cache.
func debianRoot(t *testing.T) string {
	t.Helper()
	cache := os.Getenv("TAPGATE_CACHE")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(dir, "tapgate")
	}
	tar := filepath.Join(cache, "root-essential.tar")
	if _, err := os.Stat(tar); err != nil {
		sh(t, `. /etc/os-release
			mkdir -p "$(dirname "$1")"
			for try in 1 2 3; do # mirrors have bad moments
				mmdebstrap --quiet --variant=essential --mode=root "$VERSION_CODENAME" "$1.new.tar" && break
				[ "$try" -lt 3 ] && sleep 20
			done
			mv "$1.new.tar" "$1"`, tar)
	}
	root := t.TempDir()
	sh(t, `tar -xf "$1" -C "$2" --exclude='./dev/*'`, tar, root)
	return root
}

// machine is a Debian root that runs in a gateway's network namespace.
type machine struct {
	t    *testing.T
	lab  *lab.Lab
	root string
}

// run runs a line of shell in it. Its mounts, as those that systemd makes at boot, are
// gone afterwards, but for the BPF filesystem, which is the lab's.
func (m *machine) run(line string) (string, error) {
	m.t.Helper()
	bpffs, err := m.lab.MountBPFFS()
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), waitLong)
	defer cancel()
	const inside = `mount -t proc proc "$1/proc"
		mount -t sysfs sysfs "$1/sys"
		mount --bind "$2" "$1/sys/fs/bpf"
		mount -t tmpfs tmpfs "$1/dev"
		mknod -m 666 "$1/dev/null" c 1 3
		mount -t tmpfs tmpfs "$1/run"
		exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive chroot "$1" sh -ec "$3"`
	out, err := m.lab.Gateway.Command(ctx, "unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child",
		"sh", "-ec", inside, "sh", m.root, bpffs, line).CombinedOutput()
	return string(out), err
}

func (m *machine) must(line string) string {
	m.t.Helper()
	out, err := m.run(line)
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return out
}

// files lists everything in the root, with what it is and holds, but for what the
// packager itself keeps.
func (m *machine) files(except ...string) []string {
	m.t.Helper()
	line := `cd "$1" && find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./run -o -path ./tmp -o -path ./var/lib/dpkg -o -path ./var/log \) -prune -o -printf '%p %y %m %u %g %s %l\n'`
	all := strings.Split(sh(m.t, line, m.root), "\n")
	all = slices.DeleteFunc(all, func(s string) bool {
		name, kind, _ := strings.Cut(s, " ")
		if kind != "" && kind[0] == 'd' {
			return !strings.Contains(name, "tapgate") // sizes of folders are the filesystem's
		}
		return slices.ContainsFunc(except, func(e string) bool { return strings.HasPrefix(name, e) })
	})
	slices.Sort(all)
	return all
}

func added(before, after []string) []string {
	return slices.DeleteFunc(slices.Clone(after), func(s string) bool { return slices.Contains(before, s) })
}

// ping says whether a server reaches the outside.
func (m *machine) ping() bool {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	n, err := m.lab.Servers[0].Ping(ctx, m.lab.Outside[0].Addr, 1)
	return err == nil && n == 1
}

// attached is what hangs on the gateway's interfaces.
func (m *machine) attached() string {
	m.t.Helper()
	out, err := m.lab.Gateway.Command(context.Background(), "bpftool", "net", "list").CombinedOutput()
	if err != nil {
		m.t.Fatalf("bpftool: %v\n%s", err, out)
	}
	return string(out)
}

// asUnit is what runs a command with no more rights than tapgate.service has.
func (m *machine) asUnit() string {
	m.t.Helper()
	text, err := os.ReadFile(filepath.Join(m.root, "usr/lib/systemd/system/tapgate.service"))
	if err != nil {
		m.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if caps, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(line)), "capabilityboundingset="); ok {
			return "setpriv --no-new-privs --inh-caps=-all --bounding-set=-all" + strings.ReplaceAll(" "+caps, " cap_", ",+")
		}
	}
	m.t.Fatal("tapgate.service has no CapabilityBoundingSet")
	return ""
}

// anothers is what status says of another build's programs.
const anothers = "the programs in force are of another build"

// runsAnotherBuild puts the programs of another tapgate in force, as those of the version
// before would be.
func (m *machine) runsAnotherBuild() {
	m.t.Helper()
	binary, err := builds.Make(m.t.TempDir(), builds.Programs)
	if err != nil {
		m.t.Fatal(err)
	}
	sh(m.t, `cp "$1" "$2/tmp/before"`, binary, m.root)
	m.must("/tmp/before upgrade; rm /tmp/before")
	if out := m.must("tapgate status"); !strings.Contains(out, anothers) {
		m.t.Errorf("the programs are not another build's: %s", out)
	}
}

// boot is the command that tapgate.service runs at boot.
func (m *machine) boot() string {
	m.t.Helper()
	text, err := os.ReadFile(filepath.Join(m.root, "usr/lib/systemd/system/tapgate.service"))
	if err != nil {
		m.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if command, ok := strings.CutPrefix(strings.TrimSpace(line), "ExecStart="); ok {
			return command
		}
	}
	m.t.Fatal("tapgate.service has no ExecStart")
	return ""
}

// bootsConfirmed wants the next boot to bring back what was in force and confirmed, and
// not what stands in /etc by then or waits for confirmation.
func (m *machine) bootsConfirmed() {
	m.t.Helper()
	const kept = "/var/lib/tapgate/confirmed.yaml"
	if out := m.must("stat -c %a /var/lib/tapgate " + kept + "; cmp " + kept + " /etc/tapgate/tapgate.yaml"); out != "700\n600\n" {
		m.t.Errorf("what is kept: %s", out)
	}
	m.must("tapgate mirror add boot --zone internal --l2 eth2")
	m.must("sed 's/name: ids/name: later/' /etc/tapgate/tapgate.yaml >/tmp/later.yaml; cp /tmp/later.yaml /etc/tapgate/tapgate.yaml; " +
		"tapgate apply -f /tmp/later.yaml --confirm 1h; rm /tmp/later.yaml")
	if out := m.must("tapgate mirror list"); !strings.Contains(out, "later") || strings.Contains(out, "boot") {
		m.t.Errorf("the change that waits is not in force: %s", out)
	}
	// The power fails: all of the kernel is gone, and no detach has run.
	m.must("rm -rf /sys/fs/bpf/tapgate; echo 0 >/proc/sys/net/ipv4/ip_forward")
	m.must(m.boot())
	if out := m.must("tapgate mirror list"); strings.Contains(out, "later") || !strings.Contains(out, "boot") {
		m.t.Errorf("after the boot there is not what was confirmed: %s", out)
	}
	m.must("cp /usr/share/doc/tapgate/tapgate.yaml /etc/tapgate/; tapgate apply -f /etc/tapgate/tapgate.yaml; tapgate detach; test ! -e " + kept)
	m.must(m.asUnit() + " " + m.boot()) // the first one again
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	for _, name := range []string{"mmdebstrap", "rpm", "bpftool"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Fatalf("%v: scripts/deps.sh installs it", err)
		}
	}
	m := &machine{t: t, lab: lab.ForTest(t), root: debianRoot(t)}
	// As a machine boots: the kernel forwards nothing.
	if err := m.lab.Gateway.Sysctl("net/ipv4/ip_forward", "0"); err != nil {
		t.Fatal(err)
	}
	return m
}

// forwards is the gateway's sysctl.
func (m *machine) forwards() string {
	return strings.TrimSpace(m.must("cat /proc/sys/net/ipv4/ip_forward"))
}

// The .deb and the .rpm: what they hold starts nothing and works at once; an upgrade
// leaves the gateway as it is; a purge leaves nothing, in the files or in the kernel.
func TestPackages(t *testing.T) {
	deb, rpm := packages(t)
	m := newMachine(t)
	for _, kind := range []struct {
		name            string
		install, remove func()
		except          []string // where the packager keeps its own things
	}{
		{
			name: "deb",
			install: func() {
				sh(t, `cp "$1" "$2/tmp/tapgate.deb"`, deb, m.root)
				m.must("dpkg -i /tmp/tapgate.deb")
			},
			remove: func() { m.must("dpkg --purge tapgate") },
		},
		{
			name: "rpm",
			install: func() {
				sh(t, `cp "$1" "$2/tmp/tapgate.rpm"`, rpm, m.root)
				m.rpm("-U --force --nodeps --noplugins --ignoreos " + filepath.Join(m.root, "tmp/tapgate.rpm"))
			},
			remove: func() {
				m.rpm("-e --noplugins tapgate")
				m.must("rm -rf /etc/tapgate") // what the user wrote is the user's
			},
			except: []string{"./var/lib/rpm", "./root/.rpmdb", "./etc/rpm"},
		},
	} {
		before := m.files(kind.except...)
		attached := m.attached()
		kind.install()

		new := strings.Join(added(before, m.files(kind.except...)), "\n")
		for _, want := range []string{
			"./usr/sbin/tapgate f 755 root root ", "./usr/lib/systemd/system/tapgate.service f 644 ", "/tapgate-agent.service f 644 ",
			"/man8/tapgate-apply.8.gz f 644 ", "/man7/tapgate-troubleshooting.7.gz f 644 ", "/man7/tapgate-operations.7.gz f 644 ",
			"/man7/tapgate-accounting.7.gz f 644 ", "/man7/tapgate-limits.7.gz f 644 ", "/man5/tapgate.yaml.5.gz f 644 ", "/bash-completion/completions/tapgate f ", "/_tapgate f ", "/tapgate.fish f ",
			"./usr/share/doc/tapgate/tapgate.yaml f ", "./usr/share/tapgate/tapgate.schema.json f ", "./usr/share/doc/tapgate/copyright f ", "./etc/tapgate d ",
		} {
			if !strings.Contains(new, want) {
				t.Errorf("%s: no %q in it:\n%s", kind.name, want, new)
			}
		}
		if strings.Contains(new, ".wants/") || strings.Contains(new, "man8/tapgate-man") {
			t.Errorf("%s: it enables itself, or has pages of what is hidden:\n%s", kind.name, new)
		}
		if out := m.must("tapgate version"); !strings.Contains(out, "1.2.3") {
			t.Errorf("%s: the version: %s", kind.name, out)
		}
		if out, err := m.run("tapgate status"); err == nil || m.attached() != attached {
			t.Errorf("%s: it runs after being installed:\n%s", kind.name, out)
		}

		m.must("cp /usr/share/doc/tapgate/tapgate.yaml /etc/tapgate/")
		if out := m.must("tapgate check -f /etc/tapgate/tapgate.yaml"); !strings.Contains(out, "can be put in force") {
			t.Errorf("%s: check: %s", kind.name, out)
		}
		if m.forwards() != "0" || m.ping() {
			t.Fatalf("%s: something forwards before apply: the test shows nothing", kind.name)
		}
		m.must(m.asUnit() + " " + m.boot())
		if m.forwards() != "1" || !m.ping() {
			t.Errorf("%s: it does not work: forwarding %s", kind.name, m.forwards())
		}
		m.bootsConfirmed()
		m.runsAnotherBuild()
		kind.install() // again, as an upgrade
		if out := m.must("tapgate status"); strings.Contains(out, anothers) {
			t.Errorf("%s: an upgrade of the package left the programs as they were: %s", kind.name, out)
		}
		if !m.ping() || !strings.Contains(m.must("tapgate status"), "eth3") {
			t.Errorf("%s: an upgrade took the gateway down", kind.name)
		}

		kind.remove()
		if after := m.files(kind.except...); !slices.Equal(before, after) {
			t.Errorf("%s: left behind: %q; gone: %q", kind.name, added(before, after), added(after, before))
		}
		if now := m.attached(); now != attached {
			t.Errorf("%s: left in the kernel:\n%s\nbefore:\n%s", kind.name, now, attached)
		}
		if m.forwards() != "0" || m.ping() {
			t.Errorf("%s: it still forwards", kind.name)
		}
		// Two files are the kernel's own.
		if left := m.must("ls -A -I maps.debug -I progs.debug /sys/fs/bpf"); left != "" {
			t.Errorf("%s: left in the BPF filesystem: %s", kind.name, left)
		}
	}
}

// rpm runs this machine's rpm on the root, within the gateway's namespace and with
// the mounts that scripts of a package need.
func (m *machine) rpm(args string) {
	m.t.Helper()
	bpffs, err := m.lab.MountBPFFS()
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), waitLong)
	defer cancel()
	line := fmt.Sprintf(`mount -t proc proc "$1/proc"; mount -t sysfs sysfs "$1/sys"; mount --bind "$2" "$1/sys/fs/bpf"; rpm --root "$1" %s`, args)
	out, err := m.lab.Gateway.Command(ctx, "unshare", "--mount", "--propagation=private", "sh", "-ec", line, "sh", m.root, bpffs).CombinedOutput()
	if err != nil {
		m.t.Fatalf("rpm %s: %v\n%s", args, err, out)
	}
}
