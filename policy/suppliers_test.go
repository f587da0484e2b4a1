package policy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/policy"
)

const supplierGroups = `
procurement: {members: [login/ana]}
security: {members: [login/ben]}
dba: {members: [login/cleo]}
support: {members: [login/cleo]}
`

const acmeData = `
acme-data:
  name: Acme Data GmbH
  sponsor: procurement
  contract: {start: 2026-01-01, end: 2026-11-23}
  trust_domains: [supplier.test]
  paths: [spiffe://acme.test/vendors/acme-data]
  groups: [{provider: login, group: acme-data}]
  ceiling: [tickets-api]
  assessment: {by: security, questions: [Where is the data stored?]}
`

const supplierPermit = `
@id("suppliers") permit (principal in Supplier::"acme-data", action == Action::"request", resource);
@id("domain") permit (principal in TrustDomain::"supplier.test", action == Action::"request", resource);
@id("people") permit (principal is Person, action == Action::"request", resource);
@id("operators") permit (principal is Person, action in [Action::"audit", Action::"block", Action::"operate"], resource);
`

func supplierInputs(suppliers, people string) policy.Inputs {
	files := fstest.MapFS{"all.cedar": {Data: []byte(supplierPermit)}, "groups.yaml": {Data: []byte(supplierGroups)}}
	if suppliers != "" {
		files["suppliers.yaml"] = &fstest.MapFile{Data: []byte(suppliers)}
	}
	if people != "" {
		files["people.yaml"] = &fstest.MapFile{Data: []byte(people)}
	}
	return inputs(files)
}

func loadSuppliers(t testing.TB, suppliers, people string) *policy.Engine {
	t.Helper()
	e, err := policy.Load(supplierInputs(suppliers, people))
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	return e
}

func TestSupplierIsParentOfItsIdentities(t *testing.T) {
	t.Parallel()
	e := loadSuppliers(t, acmeData, "")
	rules := e.Rules()
	contractor := query("login/kim", "tickets-api", "tickets:read")
	contractor.Principal.Person = &broker.Person{Provider: "login", Groups: []string{"acme-data"}}
	employee := query("login/kim", "tickets-api", "tickets:read")
	employee.Principal.Person = &broker.Person{Provider: "login", Groups: []string{"acme-data-fans"}}
	for _, test := range []struct {
		name     string
		q        broker.Query
		policies []string
		of       []string
	}{
		{"its trust domain", query("spiffe://supplier.test/sync", "tickets-api", "tickets:read"), []string{"domain", "suppliers"}, []string{"acme-data"}},
		{"its path", query("spiffe://acme.test/vendors/acme-data/job", "tickets-api", "tickets:read"), []string{"suppliers"}, []string{"acme-data"}},
		{"a path that only starts alike", query("spiffe://acme.test/vendors/acme-data2", "tickets-api", "tickets:read"), nil, nil},
		{"a person by a group", contractor, []string{"people", "suppliers"}, []string{"acme-data"}},
		{"a person of another group", employee, []string{"people"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := decide(t, e, test.q)
			if !slices.Equal(d.Policies, test.policies) {
				t.Errorf("got policies %q, want %q: %q", d.Policies, test.policies, d.Reasons)
			}
			if of := rules.SupplierOf(test.q.Principal); !slices.Equal(of, test.of) {
				t.Errorf("got suppliers %q, want %q", of, test.of)
			}
		})
	}
}

func TestCeilingBoundsEveryPermit(t *testing.T) {
	t.Parallel()
	e := loadSuppliers(t, acmeData, "")
	for range 3 { // also a repeated query
		d := decide(t, e, query("spiffe://supplier.test/sync", "reports", "read"))
		if d.Permit || len(d.Policies) != 0 || !strings.Contains(strings.Join(d.Reasons, " "), "ceiling") {
			t.Errorf("got %+v, want a denial by the ceiling", d)
		}
	}
}

// The contract holds from its start until its end, which is not part of it. A decision
// before the end is never remembered until after it.
func TestContractHoldsUntilItsEnd(t *testing.T) {
	t.Parallel()
	e := loadSuppliers(t, acmeData, "")
	start, end := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	q := query("spiffe://supplier.test/sync", "tickets-api", "tickets:read")
	extended := q
	extended.Extended = map[string]time.Time{"acme-data": end.Add(time.Hour)}
	for _, test := range []struct {
		name   string
		q      broker.Query
		now    time.Time
		permit bool
	}{
		{"before the start", q, start.Add(-time.Nanosecond), false},
		{"at the start", q, start, true},
		{"just before the end", q, end.Add(-time.Nanosecond), true},
		{"at the end", q, end, false},
		{"extended, at the end", extended, end, true},
		{"extended, at the new end", extended, end.Add(time.Hour), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, err := e.Decide(t.Context(), test.q, test.now)
			if err != nil || d.Permit != test.permit {
				t.Errorf("got permit %v, %q, %v, want %v", d.Permit, d.Reasons, err, test.permit)
			}
		})
	}
	for _, action := range []broker.Action{broker.ActionAudit, broker.ActionBlock, broker.ActionOperate} {
		q := broker.Query{Principal: query("login/kim", "tickets-api").Principal, Action: action}
		if d := decide(t, e, q); !d.Permit {
			t.Fatalf("%s: got a denial for an employee: %+v", action, d)
		}
		q.Principal.Person = &broker.Person{Provider: "login", Groups: []string{"acme-data"}}
		if d, err := e.Decide(t.Context(), q, end); err != nil || d.Permit {
			t.Errorf("%s after the end: got %+v, %v, want a denial", action, d, err)
		}
	}
}

// A federated trust domain without a supplier gets nothing once there is a
// suppliers.yaml, unless the operator lists it as internal.
func TestDomainWithoutSupplierIsDenied(t *testing.T) {
	t.Parallel()
	other := strings.Replace(acmeData, "trust_domains: [supplier.test]", "trust_domains: []", 1)
	q := query("spiffe://supplier.test/sync", "tickets-api", "tickets:read")
	for _, test := range []struct {
		name, suppliers string
		internal        []string
		permit          bool
	}{
		{"no suppliers.yaml", "", nil, true},
		{"its supplier was removed", "{}", nil, false},
		{"another supplier", other, nil, false},
		{"internal", other, []string{"supplier.test"}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := supplierInputs(test.suppliers, "")
			if !strings.Contains(test.suppliers, "acme-data") {
				in.FS.(fstest.MapFS)["all.cedar"].Data = []byte(`@id("domain") permit (principal in TrustDomain::"supplier.test", action == Action::"request", resource);`)
			}
			in.Internal = test.internal
			e, err := policy.Load(in)
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				if d := decide(t, e, q); d.Permit != test.permit {
					t.Errorf("got %+v, want permit %v", d, test.permit)
				}
			}
			warned := strings.Contains(strings.Join(e.Warnings(), "\n"), `"supplier.test" belongs to no supplier`)
			if warned != (!test.permit) {
				t.Errorf("got warnings %q", e.Warnings())
			}
		})
	}
}

func TestPersonEndsByFile(t *testing.T) {
	t.Parallel()
	e := loadSuppliers(t, acmeData, "login/kim: {ends: 2026-11-22, sponsor: procurement}\nlogin/lee: {ends: 2026-11-23}\n")
	for person, permit := range map[string]bool{"login/kim": false, "login/lee": true, "login/mia": true} {
		if d := decide(t, e, query(person, "tickets-api", "tickets:read")); d.Permit != permit {
			t.Errorf("%s: got %+v, want permit %v", person, d, permit)
		}
	}
	if got := e.Rules().PersonEnds["login/kim"]; got.Sponsor != "procurement" || !got.Ends.Equal(time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("got %+v", got)
	}
}

func TestLoadRejectsSuppliers(t *testing.T) {
	t.Parallel()
	second := func(text string) string {
		return acmeData + "beta:\n  sponsor: procurement\n  contract: {end: 2027-01-01}\n  ceiling: [reports]\n  " + text + "\n"
	}
	change := func(old, new string) string {
		if !strings.Contains(acmeData, old) {
			t.Fatalf("the sample has no %q", old)
		}
		return strings.Replace(acmeData, old, new, 1)
	}
	for name, test := range map[string]struct{ suppliers, want string }{
		"a path below another supplier's":   {second("paths: [spiffe://acme.test/vendors/acme-data/sub]"), `suppliers.yaml:15:11: supplier "beta": path "spiffe://acme.test/vendors/acme-data/sub" belongs to supplier "acme-data" already`},
		"a path above another supplier's":   {second("paths: [spiffe://acme.test/vendors]"), `belongs to supplier "acme-data" already`},
		"the same path":                     {second("paths: [spiffe://acme.test/vendors/acme-data]"), `belongs to supplier "acme-data" already`},
		"a path in another's trust domain":  {second("paths: [spiffe://supplier.test/sync]"), `belongs to supplier "acme-data" already`},
		"the same trust domain":             {second("trust_domains: [supplier.test]"), `belongs to supplier "acme-data" already`},
		"the same group":                    {second("groups: [{provider: login, group: acme-data}]"), `group "acme-data" belongs to supplier "acme-data" already`},
		"the provider of another's group":   {second("providers: [login]"), `provider "login" belongs to supplier "acme-data" already`},
		"no identities":                     {second(""), `supplier "beta": it has no identities`},
		"the home domain":                   {change("trust_domains: [supplier.test]", "trust_domains: [acme.test]"), "your own trust domain"},
		"an unknown domain":                 {change("trust_domains: [supplier.test]", "trust_domains: [suplier.test]"), `trust domain "suplier.test" does not exist`},
		"an unknown entitlement":            {change("[tickets-api]", "[tickets-apy]"), `entitlement "tickets-apy" does not exist`},
		"no ceiling":                        {change("ceiling: [tickets-api]", "ceiling: []"), "it has no ceiling"},
		"no sponsor":                        {change("sponsor: procurement", `sponsor: ""`), "it has no sponsor"},
		"an unknown sponsor":                {change("sponsor: procurement", "sponsor: procurment"), `group "procurment" does not exist`},
		"a sponsor that assesses":           {change("by: security", "by: procurement"), "can't assess its own supplier"},
		"no end":                            {change(", end: 2026-11-23", ""), "the contract has no end"},
		"a malformed end":                   {change("2026-11-23", "23.11.2026"), "write a day such as"},
		"an end beyond the clock":           {change("2026-11-23", "9999-12-31"), "write a year from 1970 to 2200"},
		"an end before the start":           {change("2026-11-23", "2025-11-23"), "ends before it starts"},
		"an unknown key":                    {change("ceiling:", "cieling:"), "cieling"},
		"an unknown group that assesses":    {change("by: security", "by: secruity"), `group "secruity" does not exist`},
		"questions without a group":         {change("by: security, ", ""), "names no group"},
		"a question with a line break":      {change("[Where is the data stored?]", `["a\nb"]`), "one line"},
		"a name that can't name a supplier": {change("acme-data:\n", "Acme Data:\n"), "can't name a supplier"},
		"an entry twice":                    {acmeData + "---" + acmeData, "appears twice"},
		"a list":                            {"- acme-data\n", "mapping of supplier names"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := policy.Load(supplierInputs(test.suppliers, ""))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got error %v, want %q", err, test.want)
			}
		})
	}
	for name, test := range map[string]struct{ people, want string }{
		"an unknown provider": {"logn/kim: {ends: 2026-01-01}\n", `provider "logn" does not exist`},
		"not a person":        {"kim: {ends: 2026-01-01}\n", "people.yaml:1:1"},
		"an empty entry":      {"login/kim: {}\n", "the entry is empty"},
		"a malformed end":     {"login/kim: {ends: tomorrow}\n", "write a day such as"},
		"their own sponsor":   {"login/kim: {ends: 2026-01-01, sponsor: login/kim}\n", "their own sponsor"},
		"an unknown sponsor":  {"login/kim: {ends: 2026-01-01, sponsor: nobody}\n", `group "nobody" does not exist`},
	} {
		t.Run("people: "+name, func(t *testing.T) {
			_, err := policy.Load(supplierInputs(acmeData, test.people))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got error %v, want %q", err, test.want)
			}
		})
	}
}

func TestSupplierObligationsAddUp(t *testing.T) {
	t.Parallel()
	in := supplierInputs(acmeData, "")
	in.FS.(fstest.MapFS)["all.cedar"].Data = []byte(`
@id("a") @supplier("assessed_within=365d, max_risk=medium") permit (principal in Supplier::"acme-data", action == Action::"request", resource);
@id("b") @supplier("assessed_within=90d") permit (principal in TrustDomain::"supplier.test", action == Action::"request", resource);
@id("c") @supplier("max_risk=low, assessed_within=12h") permit (principal in Path::"spiffe://supplier.test/sync", action == Action::"request", resource);
`)
	e, err := policy.Load(in)
	if err != nil {
		t.Fatal(err)
	}
	day := 24 * time.Hour
	for id, want := range map[string]broker.SupplierNeed{
		"spiffe://acme.test/vendors/acme-data": {AssessedWithin: 365 * day, MaxRisk: broker.TierMedium},
		"spiffe://supplier.test/other":         {AssessedWithin: 90 * day, MaxRisk: broker.TierMedium},
		"spiffe://supplier.test/sync":          {AssessedWithin: day / 2, MaxRisk: broker.TierLow},
	} {
		if got := decide(t, e, query(id, "tickets-api", "tickets:read")).Obligations.Supplier; got != want {
			t.Errorf("%s: got %v, want %v", id, got, want)
		}
	}
}

func TestLoadRejectsSupplierAnnotation(t *testing.T) {
	t.Parallel()
	for _, value := range []string{
		"", "assessed_within=365", "assessed_within=0d", "assessed_within=-1d", "assessed_within=4000d", "assessed_within=1.5d", "max_risk=none",
		"max_risk=critical", "max_risk=MEDIUM", "max_risk", "max_risk=low,", "max_risk=low, max_risk=medium", "age=3d", "assessed_within=500ms",
	} {
		in := supplierInputs(acmeData, "")
		in.FS.(fstest.MapFS)["all.cedar"].Data = fmt.Appendf(nil, `@id("a") @supplier(%q) permit (principal in Supplier::"acme-data", action == Action::"request", resource);`, value)
		if _, err := policy.Load(in); err == nil || !strings.Contains(err.Error(), "@supplier") {
			t.Errorf("@supplier(%q): got error %v", value, err)
		}
	}
}

// Everything in the two files is part of the revision.
func TestSuppliersArePartOfTheRevision(t *testing.T) {
	t.Parallel()
	base := loadSuppliers(t, acmeData, "login/kim: {ends: 2026-12-31}\n")
	for name, other := range map[string]*policy.Engine{
		"a supplier": loadSuppliers(t, strings.Replace(acmeData, "2026-11-23", "2026-11-24", 1), "login/kim: {ends: 2026-12-31}\n"),
		"a person":   loadSuppliers(t, acmeData, "login/kim: {ends: 2026-12-30}\n"),
	} {
		if other.Revision() == base.Revision() {
			t.Errorf("%s changed, but the revision did not", name)
		}
	}
	if files := base.Files(); len(files["suppliers.yaml"]) == 0 || len(files["people.yaml"]) == 0 {
		t.Errorf("got files %v", files)
	}
}
