package loader

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"
)

func featuresOf(t *testing.T, ifname string) map[string]bool {
	t.Helper()
	tool, err := ethtool.NewEthtool()
	if err != nil {
		t.Fatal(err)
	}
	defer tool.Close()
	f, err := tool.Features(ifname)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestChecksumOffloadOffAndBack(t *testing.T) {
	b := newPlumbBench(t)
	b.must(func() error {
		before := featuresOf(t, "near")
		names, err := txChecksumFeatures("near")
		if err != nil {
			return err
		}
		if !slices.Contains(names, "tx-checksum-ip-generic") {
			t.Errorf("got %q, which misses tx-checksum-ip-generic", names)
		}
		for range 2 {
			if err := setFeatures("near", names, false); err != nil {
				return err
			}
		}
		for name, on := range featuresOf(t, "near") {
			if on && strings.HasPrefix(name, "tx-checksum-") {
				t.Errorf("%s is still on", name)
			}
		}
		if left, err := txChecksumFeatures("near"); err != nil || len(left) != 0 {
			t.Errorf("with all off: got %q, %v", left, err)
		}
		for range 2 {
			if err := setFeatures("near", names, true); err != nil {
				return err
			}
		}
		for name, on := range featuresOf(t, "near") {
			if on != before[name] {
				t.Errorf("%s is %v, was %v", name, on, before[name])
			}
		}
		return nil
	})
}

func TestFeatureErrors(t *testing.T) {
	b := newPlumbBench(t)
	b.must(func() error {
		if _, err := txChecksumFeatures("nosuch"); !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), `"nosuch"`) {
			t.Errorf("got %v", err)
		}
		if err := setFeatures("nosuch", []string{"tx-checksum-ip-generic"}, true); !errors.Is(err, unix.ENODEV) {
			t.Errorf("got %v", err)
		}
		if err := setFeatures("near", []string{"tx-nosuch"}, true); err == nil || !strings.Contains(err.Error(), `no feature "tx-nosuch"`) {
			t.Errorf("got %v", err)
		}
		// A veth cannot do this one, and says yes without doing it.
		if err := setFeatures("near", []string{"rx-fcs"}, true); err == nil || !strings.Contains(err.Error(), "the driver did not") {
			t.Errorf("got %v", err)
		}
		return nil
	})
}
