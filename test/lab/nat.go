package lab

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Masquerade has the gateway's kernel translate IPv4 that leaves by eth0 to
// its address there, as a host that already runs firewalld or nft does.
func (l *Lab) Masquerade() error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(l.Gateway.ns.file.Fd())))
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "lab"})
	chain := conn.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	var name [16]byte
	copy(name[:], networkExternal.ifname)
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name[:]},
		&expr.Masq{},
	}})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("masquerade in %s (needs nf_tables, nft_chain_nat and nft_masq): %w", l.Gateway.Name, err)
	}
	return nil
}
