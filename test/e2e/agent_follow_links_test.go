package e2e

import (
	"strings"
	"testing"
	"time"

	"tapgate/loader"
	"tapgate/test/lab"
)

// followConfig translates both families, so that both conversations are followed.
const followConfig = gateZones + `
nat:
  masquerade:
    - {from: internal, to: external, ipv6: true}
`

// plugs are the interfaces of the gateway that may be pulled, and who is at their other end.
func (f *followed) plugs() map[string]*lab.Host {
	return map[string]*lab.Host{"eth0": f.out[0], "eth3": f.in[0], "eth2": f.Sensor}
}

// Whatever happens to a link, traffic and copies resume by themselves when it is over,
// and the flows that the addresses still fit go on.
func TestAgentFollowLinks(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		f := newFollowed(t, kind, followConfig)
		for _, ifname := range []string{"eth0", "eth3", "eth2"} {
			peer := f.plugs()[ifname]
			f.sameOutside(ifname, func() {
				f.resumes(ifname+" pulled and put back", func() {
					f.pull(ifname)
					f.plug(ifname, peer)
				})
				f.resumes(ifname+" pulled for 2 s and put back", func() {
					f.pull(ifname)
					time.Sleep(2 * time.Second)
					f.plug(ifname, peer)
				})
				f.resumes(ifname+" down and up", func() {
					f.ip(f.Gateway, "link set "+ifname+" down")
					time.Sleep(time.Second)
					f.ip(f.Gateway, "link set "+ifname+" up")
					f.addresses(ifname)
				})
				f.resumes(ifname+" without carrier and with it", func() {
					f.ip(peer, "link set eth0 down")
					time.Sleep(time.Second)
					f.ip(peer, "link set eth0 up")
					f.ip(peer, "addr replace "+peer.Interfaces[0].Addr6.String()+" dev eth0 nodad")
					f.homeRoutes(peer, ifname)
				})
				f.resumes(ifname+" moved away and back", func() {
					f.ip(f.Gateway, "link set "+ifname+" netns "+f.Mgmt.Name+" name guest0")
					time.Sleep(time.Second)
					f.ip(f.Mgmt, "link set guest0 netns "+f.Gateway.Name+" name "+ifname)
					f.ip(f.Gateway, "link set "+ifname+" up")
					f.addresses(ifname)
				})
				f.resumes(ifname+" with another MAC", func() {
					iface := f.Gateway.Interface(ifname)
					mac := strings.Replace(iface.MAC.String(), "02:00:", "02:77:", 1)
					f.ip(f.Gateway, "link set "+ifname+" address "+mac)
					// The others learn it, as they would by the announcement of a network manager.
					f.ip(peer, "neigh flush dev eth0")
				})
			})
		}
		f.checkLedgers()
	})
}
