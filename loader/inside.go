package loader

import "errors"

// InNamespace calls f in a network namespace, given by name (as in "ip netns") or
// path; "" is the caller's. Programs that f starts run in it as well.
func InNamespace(nameOrPath string, f func() error) error {
	ns, err := openNamespace(nameOrPath)
	if err != nil {
		return err
	}
	return errors.Join(ns.do(f), ns.close())
}
