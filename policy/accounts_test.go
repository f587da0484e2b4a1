package policy_test

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"accessbroker.internal/broker"
	"accessbroker.internal/policy"
)

// withAccounts returns the inputs of a folder in which people of two providers approve.
func withAccounts(groups string, aliases ...[]string) policy.Inputs {
	in := inputs(fstest.MapFS{
		"a.cedar": {Data: []byte(`@id("x") @approval("1 of support") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource);`)},
		"groups.yaml": {Data: []byte(groups + `
dba: {members: [login/ana]}
`)},
	})
	in.Catalogue, in.Channels = broker.Catalogue{"db": {Name: "db"}}, nil
	in.Providers, in.Aliases = []string{"login", "corp"}, aliases
	return in
}

// Two providers whose people approve, without linked accounts, are a warning.
func TestProvidersWithoutLinkedAccountsAreWarnedOf(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		groups  string
		aliases [][]string
		want    string
	}{
		"two members":           {"support: {members: [login/ben, corp/cleo]}", nil, "the providers corp, login serve approvers, and no account of corp, login is linked"},
		"a member and a claim":  {"support: {members: [login/ben], claims: [{provider: corp, group: g}]}", nil, "the providers corp, login serve approvers"},
		"linked":                {"support: {members: [login/ben, corp/cleo]}", [][]string{{"login/ben", "corp/ben"}}, ""},
		"linked within one":     {"support: {members: [login/ben, corp/cleo]}", [][]string{{"login/ben", "login/benjamin"}}, "no account of corp, login is linked"},
		"one provider":          {"support: {members: [login/ben, login/cleo]}", nil, ""},
		"a group without a say": {"support: {members: [login/ben]}\nothers: {members: [corp/cleo]}", nil, ""},
	} {
		e, err := policy.Load(withAccounts(test.groups, test.aliases...))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := slices.DeleteFunc(e.Warnings(), func(w string) bool { return !strings.HasPrefix(w, "people.aliases: ") })
		if test.want == "" && len(got) > 0 || test.want != "" && (len(got) != 1 || !strings.Contains(got[0], test.want)) {
			t.Errorf("%s: got warnings %q, want %q", name, got, test.want)
		}
	}
}

// Linked accounts belong to the revision, count once in a quorum, and are accountable
// together.
func TestLinkedAccountsAreRules(t *testing.T) {
	t.Parallel()
	groups := "support: {members: [login/ben, corp/ben]}"
	plain, err := policy.Load(withAccounts(groups))
	if err != nil {
		t.Fatal(err)
	}
	in := withAccounts(groups, []string{"login/ben", "corp/ben"}, []string{"login/ana", "corp/ana"})
	in.FS.(fstest.MapFS)["a.cedar"].Data = []byte(strings.Replace(string(in.FS.(fstest.MapFS)["a.cedar"].Data), "1 of support", "2 of support", 1))
	strict, err := policy.Load(in)
	if err != nil {
		t.Fatal(err)
	}
	linked, err := policy.Load(withAccounts(groups, []string{"login/ben", "corp/ben"}))
	if err != nil {
		t.Fatal(err)
	}
	if plain.Revision() == linked.Revision() {
		t.Error("the revision does not change with the accounts")
	}
	if strings.Contains(string(plain.Contents()["identities.json"]), "Aliases") || !strings.Contains(string(linked.Contents()["identities.json"]), `"corp/ben"`) {
		t.Error("identities.json does not have the accounts")
	}
	if warnings := strings.Join(strict.Warnings(), "\n"); !strings.Contains(warnings, `@approval requires 2 of group "support", which has only 1`) {
		t.Errorf("got warnings\n%s", warnings)
	}
	if got := strict.Rules().Labels[0].Accountable; !slices.Equal(got, []string{"login/ana", "corp/ana"}) || !strict.Rules().People.Same("login/ben", "corp/ben") {
		t.Errorf("got owners %q", got)
	}
}

func TestLoadRejectsAccounts(t *testing.T) {
	t.Parallel()
	for want, aliases := range map[string][][]string{
		`people.aliases: account "corp/ben" is listed twice`: {{"login/ben", "corp/ben"}, {"login/ana", "corp/ben"}},
		`provider "idp" does not exist`:                      {{"login/ben", "idp/ben"}},
		"is not a person":                                    {{"login/ben", "ben"}},
	} {
		if _, err := policy.Load(withAccounts("support: {members: [login/ben]}", aliases...)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", aliases, err, want)
		}
	}
}
