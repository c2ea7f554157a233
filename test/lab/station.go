package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Station is a machine that exists only as frames: it shares a host's cable and
// has addresses that the host's kernel does not know, so nobody but the test
// speaks for it: no RST for a segment out of the blue, no ICMP error for a port
// that nobody has. The gateway knows it as a permanent neighbour. It captures
// what is sent to its MAC.
type Station struct {
	*Capture
	MAC     net.HardwareAddr
	Addr    netip.Addr
	Addr6   netip.Addr       // invalid without IPv6
	Gateway net.HardwareAddr // of the gateway's interface on this network
	sender  *Sender
}

// Station puts a machine with the given last part of addresses beside a host,
// on its eth0.
func (h *Host) Station(number int) (*Station, error) {
	if number < 2 || number > 254 {
		return nil, fmt.Errorf("station %d beside %s: not the last part of an address", number, h.Name)
	}
	own := h.Interface("eth0")
	var gw Interface
	for _, i := range h.lab.Gateway.Interfaces {
		if own.Addr.IsValid() && i.Addr.Masked() == own.Addr.Masked() {
			gw = i
		}
	}
	if gw.Name == "" {
		return nil, fmt.Errorf("station beside %s: the gateway is not on its network", h.Name)
	}
	s := &Station{Addr: hostBits(own.Addr, number).Addr(), Gateway: gw.MAC}
	if own.Addr6.IsValid() {
		s.Addr6 = hostBits(own.Addr6, number).Addr()
	}
	ip := s.Addr.As4()
	s.MAC = append(net.HardwareAddr{2, 1}, ip[:]...)
	err := h.lab.Gateway.Do(func() error {
		link, err := netlink.LinkByName(gw.Name)
		if err != nil {
			return err
		}
		for _, a := range []netip.Addr{s.Addr, s.Addr6} {
			if !a.IsValid() {
				continue
			}
			n := &netlink.Neigh{LinkIndex: link.Attrs().Index, State: unix.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: s.MAC}
			if err := netlink.NeighSet(n); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		s.Capture, err = h.capture("eth0", Incoming, toMAC(s.MAC))
	}
	if err == nil {
		s.sender, err = h.Sender("eth0")
	}
	if err != nil {
		err = fmt.Errorf("station %s beside %s: %w", s.Addr, h.Name, err)
		if s.Capture != nil {
			_, stop := s.Stop()
			err = errors.Join(err, stop)
		}
		return nil, err
	}
	return s, nil
}

// Send sends a frame as it is, from the destination MAC on, without FCS.
func (s *Station) Send(frame []byte) error { return s.sender.Send(frame) }

// Close takes the station away; the gateway's neighbour goes with the lab.
func (s *Station) Close() error {
	_, err := s.Stop()
	return errors.Join(err, s.sender.Close())
}

// toMAC is a socket filter that keeps the frames to one address.
func toMAC(mac net.HardwareAddr) []unix.SockFilter {
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 3, K: binary.BigEndian.Uint32(mac)},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 4},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(binary.BigEndian.Uint16(mac[4:]))},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
}
