package lab

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// Sender sends raw frames from one interface of a host.
type Sender struct {
	where string
	fd    int
	to    unix.SockaddrLinklayer
}

// Sender opens an interface for raw frames. Close it after use.
func (h *Host) Sender(ifname string) (*Sender, error) {
	s := &Sender{where: h.Name + " " + ifname}
	err := h.Do(func() error {
		iface, err := net.InterfaceByName(ifname)
		if err != nil {
			return err
		}
		s.to.Ifindex = iface.Index
		// Protocol 0: the socket receives nothing.
		s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("send from %s: %w", s.where, err)
	}
	return s, nil
}

// Send sends one frame as it is, from the destination MAC on, without FCS. A
// frame above the interface's MTU is refused (EMSGSIZE).
func (s *Sender) Send(frame []byte) error {
	if err := unix.Sendto(s.fd, frame, 0, &s.to); err != nil {
		return fmt.Errorf("send %d bytes from %s: %w", len(frame), s.where, err)
	}
	return nil
}

// Close releases the sender.
func (s *Sender) Close() error { return unix.Close(s.fd) }

// Send sends frames from the host's eth0, as Sender.Send does.
func (h *Host) Send(frames ...[]byte) error {
	s, err := h.Sender("eth0")
	if err != nil {
		return err
	}
	defer s.Close()
	for _, f := range frames {
		if err := s.Send(f); err != nil {
			return err
		}
	}
	return nil
}
