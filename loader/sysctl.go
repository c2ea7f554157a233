package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Everything here is called inside the gateway's network namespace: /proc/sys/net
// is that of the thread that opens it.
const (
	sysctlRoot     = "/proc/sys/"
	sysctlForward4 = "net/ipv4/ip_forward"
	sysctlForward6 = "net/ipv6/conf/all/forwarding"
)

// sysctl is a setting that the gateway needs. %s in the key stands for the
// interface's name, which may change.
type sysctl struct {
	Key   string   `json:"key"`
	On    *touched `json:"on,omitempty"`
	Value string   `json:"value"`
}

// sysctlEntry is a setting that we have changed, and what has to be put back with it.
type sysctlEntry struct {
	sysctl
	Old string `json:"old"`
	// Effects are other settings that the kernel changes along with this one, and
	// would not give back what they were.
	Effects []sysctlEffect `json:"effects,omitempty"`
}

type sysctlEffect struct {
	Key string `json:"key"`
	Old string `json:"old"`
	New string `json:"new"` // what the kernel makes of it
}

// file is where the setting stands, "" if its interface is gone.
func (s sysctl) file() (string, error) {
	if s.On == nil {
		return sysctlRoot + s.Key, nil
	}
	l, err := s.On.link()
	if err != nil || l == nil {
		return "", err
	}
	return sysctlRoot + fmt.Sprintf(s.Key, l.Attrs().Name), nil
}

func (s sysctl) String() string {
	name := s.Key
	if s.On != nil {
		name = fmt.Sprintf(s.Key, s.On.Interface)
	}
	return strings.ReplaceAll(name, "/", ".")
}

func (s sysctl) same(o sysctl) bool {
	return s.Key == o.Key && (s.On == nil) == (o.On == nil) && (s.On == nil || *s.On == *o.On)
}

// read gives the value; fs.ErrNotExist if there is no such setting (any more).
func (s sysctl) read() (string, error) {
	file, err := s.file()
	if err == nil && file == "" {
		err = fs.ErrNotExist
	}
	if err != nil {
		return "", err
	}
	return readSysctl(file)
}

func (s sysctl) write(value string) error {
	file, err := s.file()
	if err == nil && file == "" {
		err = fs.ErrNotExist
	}
	if err == nil {
		err = os.WriteFile(file, []byte(value), 0)
	}
	if err != nil {
		return fmt.Errorf("set %s to %s: %w", s, value, err)
	}
	return nil
}

func readSysctl(file string) (string, error) {
	text, err := os.ReadFile(file)
	return strings.TrimSpace(string(text)), err
}

func (j *journal) sysctl(s sysctl) *sysctlEntry {
	for i := range j.Sysctls {
		if j.Sysctls[i].same(s) {
			return &j.Sysctls[i]
		}
	}
	return nil
}

// ownSysctls leaves out what does not concern this machine: settings that it does
// not have, and those that only make up for a change that is not ours.
func (g *Gateway) ownSysctls(list []sysctl) []sysctl {
	forward6 := sysctl{Key: sysctlForward6}
	now, err := forward6.read()
	ours := err == nil && (now != "1" || g.journal.sysctl(forward6) != nil)
	return slices.DeleteFunc(slices.Clone(list), func(s sysctl) bool {
		if s.On != nil && !ours {
			return true
		}
		_, err := s.read()
		return errors.Is(err, fs.ErrNotExist)
	})
}

// noteSysctls writes down what setSysctls is about to change, and refuses what it
// could not. The caller writes the journal.
func (g *Gateway) noteSysctls(list []sysctl) error {
	for _, s := range list {
		now, err := s.read()
		if err != nil {
			return fmt.Errorf("read %s: %w", s, err)
		}
		if now == s.Value {
			continue
		}
		file, err := s.file()
		if err != nil {
			return err
		}
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("%s is %s, and cannot be set, though %s: %w; set it before, or \"sysctls: keep\" under nat leaves it alone", s, now, s.need(), err)
		}
		f.Close()
		if g.journal.sysctl(s) == nil {
			g.journal.Sysctls = append(g.journal.Sysctls, sysctlEntry{sysctl: s, Old: now, Effects: effectsOf(s.Key)})
		}
	}
	return nil
}

// effectsOf lists what the kernel changes with a forwarding switch and does not
// give back with it: interfaces that forwarded by themselves, and redirects that
// somebody had switched off.
func effectsOf(key string) (list []sysctlEffect) {
	family := map[string]string{sysctlForward4: "ipv4", sysctlForward6: "ipv6"}[key]
	if family == "" {
		return nil
	}
	files, _ := filepath.Glob(sysctlRoot + "net/" + family + "/conf/*/forwarding")
	for _, file := range files {
		name := strings.TrimPrefix(file, sysctlRoot)
		if strings.HasSuffix(name, "/all/forwarding") {
			continue
		}
		if now, err := readSysctl(file); err == nil && now == "1" {
			list = append(list, sysctlEffect{Key: name, Old: now, New: "1"})
		}
	}
	const redirects = "net/ipv4/conf/all/accept_redirects"
	if now, err := readSysctl(sysctlRoot + redirects); family == "ipv4" && err == nil && now == "0" {
		list = append(list, sysctlEffect{Key: redirects, Old: now, New: "0"})
	}
	return list
}

// setSysctls sets what the generation in force needs and noteSysctls has noted, also
// where somebody has changed it since.
func (g *Gateway) setSysctls() error {
	var errs []error
	for _, s := range g.neededSysctls() {
		if now, err := s.read(); err != nil || now == s.Value || g.journal.sysctl(s) == nil {
			continue // gone with its interface, as it shall be, or not noted yet
		}
		err := s.write(s.Value)
		if err == nil {
			g.mended = append(g.mended, fmt.Sprintf("%s set to %s again", s, s.Value))
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// wrongSysctls tells of those that are not as the generation in force needs them.
func (g *Gateway) wrongSysctls() (told []string) {
	if g.active.Gateway == nil {
		return nil
	}
	why := "somebody has changed it since, apply again"
	if g.active.Gateway.KeepSysctls {
		why = "it is left to you, since sysctls are to be kept"
	}
	for _, s := range g.active.Gateway.Sysctls {
		if now, err := s.read(); err == nil && now != s.Value {
			told = append(told, fmt.Sprintf("%s is %s, and %s: %s", s, now, s.need(), why))
		}
	}
	return told
}

// restoreSysctls puts back what the generation in force does not need, where it is
// still as we have set it.
func (g *Gateway) restoreSysctls() error {
	var errs []error
	// The last first: forwarding goes before what was set for its sake.
	for i := len(g.journal.Sysctls) - 1; i >= 0; i-- {
		e := g.journal.Sysctls[i]
		if g.needsSysctl(e.sysctl) {
			continue
		}
		if e.Key == sysctlLiberal {
			if err := g.keepTracked(); err != nil { // no reason to stay
				g.warnings = append(g.warnings, err.Error())
			}
		}
		errs = append(errs, e.restore())
	}
	return errors.Join(errs...)
}

func (g *Gateway) needsSysctl(s sysctl) bool {
	return slices.ContainsFunc(g.neededSysctls(), s.same)
}

// neededSysctls are those of the live generations that are ours to set.
func (g *Gateway) neededSysctls() (list []sysctl) {
	for _, gen := range g.live() {
		if gen.Gateway != nil && !gen.Gateway.KeepSysctls {
			list = append(list, gen.Gateway.Sysctls...)
		}
	}
	return list
}

func (e sysctlEntry) restore() error {
	now, err := e.read()
	if errors.Is(err, fs.ErrNotExist) || err == nil && now != e.Value {
		return nil
	}
	if err != nil {
		return fmt.Errorf("put %s back: %w", e, err)
	}
	// What the effects are to be afterwards: as they were, or as somebody has set them since.
	want := map[string]string{}
	for _, f := range e.Effects {
		if now, err := readSysctl(sysctlRoot + f.Key); err == nil {
			want[f.Key] = now
			if now == f.New {
				want[f.Key] = f.Old
			}
		}
	}
	if err := e.write(e.Old); err != nil {
		return fmt.Errorf("put back: %w", err)
	}
	var errs []error
	for _, f := range e.Effects {
		value, ok := want[f.Key]
		if now, err := readSysctl(sysctlRoot + f.Key); !ok || err != nil || now == value {
			continue // as it was, or gone meanwhile
		}
		errs = append(errs, sysctl{Key: f.Key}.write(value))
	}
	return errors.Join(errs...)
}
