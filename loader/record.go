package loader

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cilium/ebpf"
)

// Layout is the version of all pinned state: TG_LAYOUT of headers/abi.h. State of
// another layout is refused.
const Layout = 4

// journalKey is the element of the records map behind those of the two generations.
const journalKey uint32 = 2

// recordSize is TG_RECORD_SIZE of headers/abi.h, in bytes.
const recordSize = 256 * 1024

// record is what the loader must know of a generation and the data plane does
// not: names, and which number in the maps belongs to which. It lies in the
// element of the generation it describes, so the control word that puts a
// generation in force puts its record in force, too.
type record struct {
	Layout  int       `json:"layout"`
	Serial  uint64    `json:"serial"` // 0: nothing was ever applied
	Applied time.Time `json:"applied"`
	Source  string    `json:"source"`
	// File is the file that Source stands in.
	File SourceFile `json:"file,omitzero"`
	// Previous is the Source of the configuration before, for "rollback".
	Previous     string     `json:"previous,omitempty"`
	PreviousFile SourceFile `json:"previous_file,omitzero"`
	// Returned: the change that was made last was not confirmed.
	Returned *returned      `json:"returned,omitempty"`
	Members  []memberRecord `json:"members"`
	Mirrors  []mirrorRecord `json:"mirrors"`
	Neighs   []neighRecord  `json:"neighs"`
	Zones    []zoneRecord   `json:"zones"`
	Gateway  *gatewayRecord `json:"gateway,omitempty"` // nil: tap only
}

type memberRecord struct {
	Interface string   `json:"interface"`
	Ifindex   int      `json:"ifindex"`
	MAC       string   `json:"mac"`
	Zone      string   `json:"zone"`
	Role      Role     `json:"role"`
	Slot      uint32   `json:"slot"`
	Programs  []string `json:"programs"`
	Addresses []string `json:"addresses,omitempty"` // of a dmz interface: questions for them pass
	MTU       int      `json:"mtu"`
	// Written is its name in the configuration, if that is another one.
	Written string `json:"written,omitempty"`
	// Absent: it was not there when the configuration was applied again, and all about
	// it is as it was before.
	Absent bool `json:"absent,omitempty"`
	// Known are its addresses, so that it is seen when they become others.
	Known []knownAddress `json:"known,omitempty"`
}

type mirrorRecord struct {
	Name    string         `json:"name"`
	Number  uint32         `json:"number"`
	Zones   []string       `json:"zones"`
	Targets []targetRecord `json:"targets"`
}

type targetRecord struct {
	Target    string  `json:"target"` // Target.String
	Number    uint32  `json:"number"`
	Interface string  `json:"interface"`
	Ifindex   int     `json:"ifindex"`
	Neigh     *uint32 `json:"neigh,omitempty"`
}

type neighRecord struct {
	Ifindex int    `json:"ifindex"`
	Address string `json:"address"`
	Number  uint32 `json:"number"`
}

// journal is what has to be undone one day. Every entry is written before the
// thing is done, so that a process that was killed in between hides nothing.
type journal struct {
	Layout   int            `json:"layout"`
	Handover int            `json:"handover"` // of the programs; 0: an upgrade across numbers was cut short
	Secret   uint32         `json:"secret"`   // of the programs: tg_secret of headers/compat.h
	Inode    uint64         `json:"netns_inode"`
	Cookie   uint64         `json:"netns_cookie"` // 0: the kernel has none
	Touched  []touched      `json:"touched"`
	Qdiscs   []touched      `json:"qdiscs"`   // clsact added by us
	Offloads []offloadEntry `json:"offloads"` // features switched off by us
	Sysctls  []sysctlEntry  `json:"sysctls,omitempty"`
}

// touched is an interface. The name and MAC tell whether an index was reused.
type touched struct {
	Interface string `json:"interface"`
	Ifindex   int    `json:"ifindex"`
	MAC       string `json:"mac"`
}

type offloadEntry struct {
	touched
	Features []string `json:"features"`
}

var errRecordFull = errors.New("the configuration is too long")

func readRecord(m *ebpf.Map, key uint32, into any) error {
	raw, err := m.LookupBytes(key)
	if err != nil {
		return fmt.Errorf("read record %d: %w", key, err)
	}
	text := bytes.TrimRight(raw, "\x00")
	if len(text) == 0 {
		return nil
	}
	if text, err = unpackRecord(raw, text); err != nil {
		return fmt.Errorf("record %d is not readable: %w", key, err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("record %d is not readable: %w", key, err)
	}
	return nil
}

// writeRecord replaces a record in one system call: after a kill it is the old
// or the new one.
func writeRecord(m *ebpf.Map, key uint32, from any) error {
	text, err := json.Marshal(from)
	if err != nil {
		return fmt.Errorf("write record %d: %w", key, err)
	}
	if len(text) > recordSize {
		if text, err = packRecord(text); err != nil {
			return fmt.Errorf("write record %d: %w", key, err)
		}
	}
	if len(text) > recordSize {
		return fmt.Errorf("write record %d: %w: it takes %d bytes when compressed, and there is room for %d", key, errRecordFull, len(text), recordSize)
	}
	raw := make([]byte, recordSize)
	copy(raw, text)
	if err := m.Put(key, raw); err != nil {
		return fmt.Errorf("write record %d: %w", key, err)
	}
	return nil
}

// A record that does not fit is compressed, behind this mark and its length: the
// end of what is compressed may be zeros.
const packedMark = "tgz1"

func packRecord(text []byte) ([]byte, error) {
	out := bytes.NewBuffer(append([]byte(packedMark), 0, 0, 0, 0))
	w, err := flate.NewWriter(out, flate.DefaultCompression)
	if err == nil {
		_, err = w.Write(text)
		err = errors.Join(err, w.Close())
	}
	if err != nil {
		return nil, err
	}
	packed := out.Bytes()
	binary.LittleEndian.PutUint32(packed[len(packedMark):], uint32(len(packed)))
	return packed, nil
}

func unpackRecord(raw, text []byte) ([]byte, error) {
	if !bytes.HasPrefix(raw, []byte(packedMark)) {
		return text, nil
	}
	const head = len(packedMark) + 4
	size := binary.LittleEndian.Uint32(raw[len(packedMark):head])
	if size < uint32(head) || size > uint32(len(raw)) {
		return nil, errors.New("it is cut short")
	}
	return io.ReadAll(flate.NewReader(bytes.NewReader(raw[head:size])))
}
