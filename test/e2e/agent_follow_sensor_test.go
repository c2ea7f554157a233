package e2e

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tapgate/loader"
	pkt "tapgate/test/packet"
)

// The sensor is replaced by another machine with its address, which says so or keeps
// silent, or it goes and comes back: copies find it by themselves, and nobody else notices.
func TestAgentFollowSensor(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]string{
		"IPv4": followConfig,
		"IPv6": strings.Replace(followConfig, "via: 192.168.4.2", `via: "2001:db8:4::2"`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFollowed(t, loader.AttachAuto, config)
			mac := func(n byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0x77, n, 1} }
			replaced := func(n byte) {
				if err := f.Sensor.SetMAC("eth0", mac(n)); err != nil {
					t.Fatal(err)
				}
			}
			f.resumes("sensor replaced, announced", func() {
				replaced(1)
				err := f.Sensor.Send(pkt.ARPRequest(mac(1), f.Sensor.Addr, f.Sensor.Addr),
					pkt.AdvertFrame(mac(1), net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, netip.MustParseAddr("ff02::1"), 0x20, f.Sensor.Addr6))
				if err != nil {
					t.Fatal(err)
				}
			})
			var all time.Duration
			const times = 4
			for n := range times { // each at another moment between two questions
				all += f.resumes("sensor replaced, without a word", func() { replaced(byte(2 + n)) })
				time.Sleep(time.Duration(n) * 130 * time.Millisecond)
			}
			if all > times*time.Second { // by the data plane's questions alone it would be some 2 s each
				t.Errorf("a sensor that was replaced without a word is found after %v, in the mean", all/times)
			}
			f.resumes("sensor's link flaps", func() {
				for range 5 {
					f.ip(f.Sensor, "link set eth0 down")
					f.ip(f.Sensor, "link set eth0 up")
				}
				f.ip(f.Sensor, "addr replace "+f.Sensor.Interfaces[0].Addr6.String()+" dev eth0 nodad")
			})
			f.resumes("sensor gone for 10 s", func() {
				f.ip(f.Sensor, "link set eth0 arp off multicast off")
				f.ip(f.Sensor, "addr flush dev eth0")
				time.Sleep(10 * time.Second)
				f.ip(f.Sensor, "link set eth0 arp on multicast on")
				for _, a := range []string{f.Sensor.Interfaces[0].Addr.String(), f.Sensor.Interfaces[0].Addr6.String()} {
					f.ip(f.Sensor, "addr add "+a+" dev eth0 nodad")
				}
			})
			f.checkLedgers()
		})
	}
}
