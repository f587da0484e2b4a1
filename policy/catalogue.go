package policy

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"accessbroker.internal/broker"
)

// An entitlementText is how an entitlement is kept beside the log, under its
// digest. Whatever is added to Entitlement is in it without anybody having to
// remember: a decision may come to read it.
type entitlementText struct {
	broker.Entitlement
	DefaultTTL, MaxTTL, MinTTL, CollectWithin string
	Effect                                    string
}

func renderCatalogue(c broker.Catalogue) ([]byte, error) {
	text := make(map[string]entitlementText, len(c))
	for name, e := range c {
		text[name] = entitlementText{
			*e, e.DefaultTTL.String(), e.MaxTTL.String(), e.MinTTL.String(), e.CollectWithin.String(), hex.EncodeToString(e.Effect[:]),
		}
	}
	return render(text)
}

// renderIdentities renders what makes an identity, but for its proof.
func renderIdentities(in Inputs) ([]byte, error) {
	return render(struct {
		HomeDomain              string
		TrustDomains, Providers []string
		Marks                   []broker.Mark
	}{in.HomeDomain, slices.Sorted(slices.Values(in.TrustDomains)), slices.Sorted(slices.Values(in.Providers)), in.Marks})
}

// render indents, so that two versions can be compared line by line.
func render(v any) ([]byte, error) {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("rendering %T: %w", v, err)
	}
	return append(text, '\n'), nil
}

// checkCatalogue reports what the catalogue names and does not exist.
func checkCatalogue(c broker.Catalogue, known *names, ps *problems) {
	for name, e := range c {
		if e.Name != name {
			ps.add(Problem{File: "entitlements." + name, Text: fmt.Sprintf("is named %q", e.Name)})
		}
		if e.Owner == "" {
			continue
		}
		if err := known.group(e.Owner); err != nil {
			ps.add(Problem{File: "entitlements." + name, Text: "owner: " + err.Error()})
		}
	}
}

// checkMarks reports marks that no identity can carry as they are meant.
func checkMarks(marks []broker.Mark, known *names, ps *problems) {
	for _, m := range marks {
		problem := func(err error) {
			if err != nil {
				ps.add(Problem{File: "attest.workloads", Text: fmt.Sprintf("under %q: %v", m.Under, err)})
			}
		}
		problem(known.place(m.Under))
		if m.Kind != broker.KindWorkload && m.Kind != broker.KindAgent {
			problem(fmt.Errorf("kind %q: write %s or %s", m.Kind, broker.KindWorkload, broker.KindAgent))
		}
		for _, person := range m.Accountable {
			problem(known.person(person))
		}
	}
}
