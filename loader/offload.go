package loader

import (
	"fmt"
	"slices"
	"strings"

	"github.com/safchain/ethtool"
)

// txChecksumFeatures names the transmit checksum offloads of an interface that are
// on and can be switched off: what "ethtool -K DEV tx off" would change. With them
// off the kernel finishes checksums and cuts GSO packets before the link.
func txChecksumFeatures(ifname string) ([]string, error) {
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return nil, fmt.Errorf("ethtool: %w", err)
	}
	defer tool.Close()
	features, err := tool.FeaturesWithState(ifname)
	if err != nil {
		return nil, fmt.Errorf("read features of %q: %w", ifname, err)
	}
	var names []string
	for name, f := range features {
		if strings.HasPrefix(name, "tx-checksum-") && f.Active && f.Available && !f.NeverChanged {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// txChecksumStuck names those that are on, whether or not they can be switched off.
func txChecksumStuck(ifname string) ([]string, error) {
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return nil, fmt.Errorf("ethtool: %w", err)
	}
	defer tool.Close()
	features, err := tool.Features(ifname)
	if err != nil {
		return nil, fmt.Errorf("read features of %q: %w", ifname, err)
	}
	var names []string
	for name, on := range features {
		if on && strings.HasPrefix(name, "tx-checksum-") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// offloadLeft tells what that means.
func offloadLeft(ifname string, features []string) string {
	return fmt.Sprintf("interface %s has %s on: the sensor may get frames larger than its MTU and unfinished checksums",
		ifname, strings.Join(features, ", "))
}

// setFeatures switches features of an interface on or off; those that already are
// stay untouched. The driver's word is checked by reading them again.
func setFeatures(ifname string, names []string, on bool) error {
	if len(names) == 0 {
		return nil
	}
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("ethtool: %w", err)
	}
	defer tool.Close()
	word := "off"
	if on {
		word = "on"
	}
	wrong, err := featuresNot(tool, ifname, names, on)
	if err != nil || len(wrong) == 0 {
		return err
	}
	change := make(map[string]bool)
	for _, name := range wrong {
		change[name] = on
	}
	if err := tool.Change(ifname, change); err != nil {
		return fmt.Errorf("switch %s of %q %s: %w", strings.Join(wrong, ", "), ifname, word, err)
	}
	wrong, err = featuresNot(tool, ifname, names, on)
	if err == nil && len(wrong) > 0 {
		err = fmt.Errorf("switch %s of %q %s: the driver did not; see \"ethtool -k %s\"",
			strings.Join(wrong, ", "), ifname, word, ifname)
	}
	return err
}

// featuresNot gives those of names that are not as wanted.
func featuresNot(tool *ethtool.Ethtool, ifname string, names []string, on bool) ([]string, error) {
	now, err := tool.Features(ifname)
	if err != nil {
		return nil, fmt.Errorf("read features of %q: %w", ifname, err)
	}
	var wrong []string
	for _, name := range names {
		if active, ok := now[name]; !ok {
			return nil, fmt.Errorf("%q has no feature %q", ifname, name)
		} else if active != on {
			wrong = append(wrong, name)
		}
	}
	return wrong, nil
}
