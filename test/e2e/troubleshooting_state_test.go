package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"tapgate/test/builds"
	"tapgate/test/lab"
)

// What apply refuses, what stands in the way of commands, and what is not there.
var stateAilments = map[string]ailment{
	"The host masquerades": {make: func(p *patient) {
		p.needs("nft")
		p.write(p.file, troubleConfig)
		p.do("", `nft 'table ip nat { chain postrouting { type nat hook postrouting priority srcnat; oifname "eth0" masquerade; }; }'`)
	}},
	"Your SSH connection comes in by the dmz interface": {make: func(p *patient) {
		p.needs("ssh")
		p.write(p.file, troubleConfig)
		p.login(p.Sensor, "192.168.4.1")
	}},
	"A forward takes the port of your SSH connection": {make: func(p *patient) {
		p.needs("ssh")
		p.write(p.file, troubleWith("name: rdp", "name: ssh", "port: 3389", "port: 2222"))
		p.login(p.Outside[0], "203.0.113.1")
	}},
	"A change waits for confirmation": {make: func(p *patient) {
		p.use(troubleConfig)
		p.write(p.file, troubleWith("name: rdp", "name: desktop"))
		p.do("", "tapgate apply -f /etc/tapgate/tapgate.yaml --confirm 10m")
	}},
	"Nobody confirmed it": {make: func(p *patient) {
		p.use(troubleConfig)
		p.write(p.file, troubleWith("zones: [internal]", "zones: [mgmt]"))
		p.do("", "tapgate apply -f /etc/tapgate/tapgate.yaml --confirm 5s")
	}},
	"It was made by a command, and the file was applied later": {make: func(p *patient) {
		p.write(p.file, troubleConfig)
		p.do("", "tapgate apply -f /etc/tapgate/tapgate.yaml", "tapgate mirror add rec --zone internal --l2 eth2")
	}},
	"An interface is stacked on another": {make: func(p *patient) {
		p.do("", "ip link add top0 link eth3 type macvlan")
		p.write(p.file, troubleWith("[eth3]", "[eth3, top0]"))
	}},
	"An interface is a port of a bridge": {make: func(p *patient) {
		p.do("", "ip link add br0 type bridge", "ip link set eth3 master br0")
		p.write(p.file, troubleConfig)
	}},
	"An interface has no Ethernet frames": {make: func(p *patient) {
		p.do("", "ip tuntap add tun0 mode tun")
		p.write(p.file, troubleWith("[eth0]", "[eth0, tun0]"))
	}},
	"An interface is not there": {make: func(p *patient) { p.write(p.file, troubleWith("[eth3]", "[eth9]")) }},
	"The dmz interface is too small": {make: func(p *patient) {
		p.do("", "ip link set eth2 mtu 1400")
		p.write(p.file, troubleConfig)
	}},
	"The sensor is on no dmz network": {make: func(p *patient) {
		p.write(p.file, troubleWith("via: 192.168.4.2", "via: 192.168.3.2"))
	}},
	"The external interface has no address": {make: func(p *patient) {
		p.do("", "ip address flush dev eth0")
		p.write(p.file, troubleConfig)
	}},
	"A forward leads to nobody inside": {make: func(p *patient) {
		p.write(p.file, troubleWith("192.168.3.2:3389", "192.168.9.2:3389"))
	}},
	"The file has a mistake": {make: func(p *patient) { p.write(p.file, troubleWith("zones: [internal]", "zone: [internal]")) }},
	"The flow table has no room for so many": {make: func(p *patient) {
		p.use(troubleConfig)
		p.write(p.file, troubleWith("nat:\n", "nat:\n  max_flows: 1000000\n"))
	}},

	"A command is running": {make: func(p *patient) {
		p.use(troubleConfig)
		p.runs("", "flock "+p.stateDir()+" sleep 600")
	}},
	"Its namespace is gone": {make: func(p *patient) {
		p.write(p.file, troubleConfig)
		p.forgotten()
	}},
	"The state is not understood": {make: func(p *patient) {
		p.use(troubleConfig)
		if err := os.Remove(filepath.Join(p.stateDir(), "maps", "tg_control")); err != nil {
			p.t.Fatal(err)
		}
	}},
	"The programs are of another build": {make: func(p *patient) {
		p.write(p.file, troubleConfig)
		p.by(anotherBuild(p.t, builds.Programs)).apply(troubleConfig)
	}},
	"No unit puts it in force": {make: func(p *patient) {
		p.needs("systemctl")
		p.write(p.file, troubleConfig)
		p.installed()
	}},
	"No agent runs": {make: func(p *patient) { p.use(troubleConfig) }},
	"The agent listens elsewhere": {make: func(p *patient) {
		p.use(troubleConfig)
		p.agent(nil, "--listen", "192.168.5.1:9435")
	}},
	"The agent does not answer": {make: func(p *patient) {
		p.use(troubleConfig)
		a := p.agent(nil)
		p.t.Cleanup(func() { a.signal(syscall.SIGCONT) }) // so that it can end
		a.signal(syscall.SIGSTOP)
	}},
}

// login has what is typed at the gateway typed by SSH, from another host.
func (p *patient) login(from *lab.Host, to string) {
	p.t.Helper()
	s := p.sshd()
	p.ssh = func(line string) result { return s.run(from, to, "PATH="+p.path+":$PATH; "+line) }
}

// installed puts the units where systemctl looks for those of this machine.
func (p *patient) installed() {
	p.t.Helper()
	units, err := filepath.Glob("../../scripts/systemd/*.service")
	if err != nil || len(units) == 0 {
		p.t.Fatalf("%v: %d units", err, len(units))
	}
	for _, unit := range units {
		text, err := os.ReadFile(unit)
		if err != nil {
			p.t.Fatal(err)
		}
		p.write(filepath.Join(p.units, "usr/lib/systemd/system", filepath.Base(unit)), string(text))
	}
}

// forgotten makes the state that of a network namespace which is gone, as when the
// kernel gives a new one the number of the old.
func (p *patient) forgotten() {
	p.t.Helper()
	old := newSpace(p.t, true)
	if r := p.tapgateAt(old.name, attachSpace...); r.code != 0 {
		p.t.Fatal(r)
	}
	dir := filepath.Join(p.bpffs, "tapgate", strconv.FormatUint(inodeOf(p.t, "/run/netns/"+old.name), 10))
	old.remove(p.t)
	if err := os.Rename(dir, p.stateDir()); err != nil {
		p.t.Fatal(err)
	}
}
