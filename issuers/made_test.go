package issuers

import (
	"testing"

	"accessbroker.internal/broker"
)

// Every issuer knows its own leases, and those that only time ends.
func TestMade(t *testing.T) {
	type maker interface{ Made(broker.Lease) bool }
	aws, _, _, l := revocable(t, AWSDenyRole)
	here, err := NewVault(VaultConfig{Address: "https://vault.test:8200", Namespace: "a"})
	if err != nil {
		t.Fatal(err)
	}
	there, err := NewVault(VaultConfig{Address: "https://vault.test:8200", Namespace: "b"})
	if err != nil {
		t.Fatal(err)
	}
	token, vault := &Token{}, string(vaultHandle{Accessor: "a", Made: endToken, At: here.at}.encode())
	for _, c := range []struct {
		handle string
		by     []maker
	}{
		{"", []maker{token, aws, here, there}},
		{vault, []maker{here}},
		{string(l.Handle), []maker{aws}},
		{awsNothing, []maker{aws}},
		{`{"role":"x","deny":"session"}`, []maker{aws}}, // as it was before it named the account
		{`{"role":"x","account":"210987654321","deny":"session"}`, nil},
	} {
		made := map[maker]bool{}
		for _, m := range c.by {
			made[m] = true
		}
		for _, m := range []maker{token, aws, here, there} {
			if got := m.Made(broker.Lease{Handle: []byte(c.handle)}); got != made[m] {
				t.Errorf("%q: %T says %v", c.handle, m, got)
			}
		}
	}
}
