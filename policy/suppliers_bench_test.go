package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"accessbroker.internal/broker"
)

// BenchmarkDecideSuppliers measures decisions among 10,000 policies with 1,000 suppliers and
// 100,000 people known: on an own workload, which is remembered, and on a supplier's workload
// and a supplier's person, which are not.
func BenchmarkDecideSuppliers(b *testing.B) {
	policies, suppliers, people := 10_000, 1_000, 100_000
	if testing.Short() {
		policies, suppliers, people = 100, 10, 100
	}
	plain, own := company(b, policies)
	in := plain.in
	files := maps.Clone(in.FS.(fstest.MapFS))
	var text, ends, more strings.Builder
	for i := range suppliers {
		fmt.Fprintf(&text, "s%d:\n  sponsor: owners\n  contract: {end: 2030-01-01}\n  paths: [spiffe://supplier.test/s%d]\n  groups: [{provider: login, group: s%d}]\n  ceiling: [entitlement-3]\n", i, i, i)
	}
	fmt.Fprintf(&more, "@id(\"supplier\") @supplier(\"max_risk=medium\") permit (principal in Supplier::\"s7\", action == Action::\"request\", resource == Entitlement::\"entitlement-3\");\n")
	for i := range people {
		fmt.Fprintf(&ends, "login/p%d: {ends: 2030-01-01}\n", i)
	}
	files["suppliers.yaml"], files["people.yaml"] = &fstest.MapFile{Data: []byte(text.String())}, &fstest.MapFile{Data: []byte(ends.String())}
	files["suppliers.cedar"] = &fstest.MapFile{Data: []byte(more.String())}
	in.FS, in.Providers, in.TrustDomains = files, []string{"login"}, []string{"acme.test", "supplier.test"}
	e, err := Load(in)
	if err != nil {
		b.Fatal(err)
	}
	theirs, person := own, own
	theirs.Principal = broker.Identity{ID: "spiffe://supplier.test/s7/job", Kind: broker.KindWorkload, TrustDomain: "supplier.test"}
	theirs.Entitlement = in.Catalogue["entitlement-3"]
	person.Principal = broker.Identity{ID: "login/p77", Kind: broker.KindPerson, Person: &broker.Person{Provider: "login", Groups: []string{"s7"}}}
	person.Entitlement = theirs.Entitlement
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	queries := map[string]broker.Query{"own workload": own, "supplier's workload": theirs, "supplier's person": person}
	for _, name := range slices.Sorted(maps.Keys(queries)) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				d, err := e.Decide(b.Context(), queries[name], now)
				if err != nil || !d.Permit {
					b.Fatalf("%+v, %v", d, err)
				}
			}
		})
	}
}
