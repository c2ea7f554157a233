package e2e

import (
	"math/rand/v2"
	"testing"
	"time"

	"tapgate/loader"
)

// kill ends the agent as if the machine had no memory left.
func (f *followed) kill() {
	f.t.Helper()
	f.agent.ended = true
	if err := f.agent.cmd.Process.Kill(); err != nil {
		f.t.Fatal(err)
	}
	_ = f.agent.cmd.Wait() // by our signal
}

// Whenever the agent is killed while it puts something right, the next one ends in the
// right state.
func TestAgentFollowKilled(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		f := newFollowed(t, kind, followConfig)
		seed := uint64(time.Now().UnixNano())
		random := rand.New(rand.NewPCG(seed, 0))
		t.Logf("seed %d", seed)
		events := map[string]func(){}
		for ifname, peer := range f.plugs() {
			events[ifname+" pulled and put back"] = func() { f.pull(ifname); f.plug(ifname, peer) }
			events[ifname+" down and up"] = func() {
				f.ip(f.Gateway, "link set "+ifname+" down")
				f.ip(f.Gateway, "link set "+ifname+" up")
				f.addresses(ifname)
			}
		}
		events["another address and the first one again"] = func() {
			if err := f.Gateway.Sysctl("net/ipv4/conf/eth0/promote_secondaries", "1"); err != nil {
				t.Fatal(err)
			}
			f.ip(f.Gateway, "addr add 203.0.113.71/24 dev eth0")
			f.ip(f.Gateway, "addr del 203.0.113.1/24 dev eth0")
			time.Sleep(time.Duration(random.IntN(600)) * time.Millisecond)
			f.ip(f.Gateway, "addr del 203.0.113.71/24 dev eth0")
			f.addresses("eth0")
		}
		events["forwarding off"] = func() {
			if err := f.Gateway.Sysctl("net/ipv4/ip_forward", "0"); err != nil {
				t.Fatal(err)
			}
		}
		events["checksum offload on"] = func() { f.inGateway("ethtool", "-K", "eth2", "tx", "on") }
		events["sensor replaced"] = func() {
			f.ip(f.Sensor, "link set eth0 down")
			f.ip(f.Sensor, "link set eth0 up")
			f.ip(f.Sensor, "addr replace "+f.Sensor.Interfaces[0].Addr6.String()+" dev eth0 nodad")
		}
		for range 2 {
			for what, happen := range events {
				killed := make(chan struct{})
				after := time.Duration(random.IntN(250)) * time.Millisecond
				go func() {
					time.Sleep(after)
					f.kill()
					close(killed)
				}()
				happen()
				<-killed
				f.startAgent()
				f.resumes(what+", killed after "+after.String(), func() {})
			}
		}
		f.checkLedgers()
		f.agent.end()
		f.must("detach")
		f.nothingLeft()
	})
}
