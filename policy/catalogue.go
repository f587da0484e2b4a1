package policy

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/broker"
)

// An entitlementText is an entitlement as the revision hashes it and as it is
// kept next to the log. It embeds Entitlement, so that the revision covers
// fields that are added later, which a decision may read.
type entitlementText struct {
	broker.Entitlement
	DefaultTTL, MaxTTL, MinTTL, CollectWithin string
	Effect                                    string
}

// renderCatalogue returns the catalogue as JSON. It writes durations as text, so that
// people can read a revision; maps are sorted by key, so that equal catalogues have
// equal digests.
func renderCatalogue(c broker.Catalogue) ([]byte, error) {
	text := make(map[string]entitlementText, len(c))
	for name, e := range c {
		text[name] = entitlementText{
			*e, e.DefaultTTL.String(), e.MaxTTL.String(), e.MinTTL.String(), e.CollectWithin.String(), hex.EncodeToString(e.Effect[:]),
		}
	}
	return render(text)
}

// renderIdentities returns the inputs that shape identities. The revision hashes
// the keys, so they must not change with the names of fields.
func renderIdentities(in Inputs) ([]byte, error) {
	return render(struct {
		HomeDomain              string
		TrustDomains, Providers []string
		Labels                  []broker.WorkloadLabels `json:"Marks"`
		Aliases                 [][]string              `json:",omitempty"`
		Internal                []string                `json:",omitempty"`
		OrphanGrace             map[broker.Kind]string  `json:",omitempty"`
		OIDCDomains             []string                `json:",omitempty"`
	}{in.HomeDomain, slices.Sorted(slices.Values(in.TrustDomains)), slices.Sorted(slices.Values(in.Providers)), in.Labels, in.Aliases, slices.Sorted(slices.Values(in.Internal)), graceTexts(in.OrphanGrace), slices.Sorted(slices.Values(in.OIDCDomains))})
}

// graceTexts returns durations as people write them.
func graceTexts(grace map[broker.Kind]time.Duration) map[broker.Kind]string {
	texts := make(map[broker.Kind]string, len(grace))
	for kind, d := range grace {
		texts[kind] = d.String()
	}
	return texts
}

// checkInternal reports internal trust domains that do not exist.
func checkInternal(in Inputs, known *names, ps *problems) {
	for i, domain := range in.Internal {
		if err := known.checkDomain(domain); err != nil {
			ps.add(Problem{File: "attest.internal_domains", Key: fmt.Sprintf("attest/internal_domains/%d", i), Text: err.Error()})
		}
	}
}

// render returns indented JSON, so that two revisions can be compared line by
// line.
func render(v any) ([]byte, error) {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("rendering %T: %w", v, err)
	}
	return append(text, '\n'), nil
}

// checkCatalogue reports entitlements with another name than their key, or with
// an owner that does not exist.
func checkCatalogue(c broker.Catalogue, known *names, ps *problems) {
	for name, e := range c {
		if e.Name != name {
			ps.add(Problem{File: "entitlements." + name, Text: fmt.Sprintf("the entitlement is named %q: use one name", e.Name)})
		}
		if e.Owner == "" {
			continue
		}
		if err := known.checkGroup(e.Owner); err != nil {
			ps.add(Problem{File: "entitlements." + name, Key: "entitlements/" + name + "/owner", Text: "owner: " + err.Error()})
		}
	}
}

// checkAliases reports accounts that cannot be linked.
func checkAliases(aliases [][]string, known *names, ps *problems) {
	problem := func(err error) {
		if err != nil {
			ps.add(Problem{File: "people.aliases", Text: err.Error()})
		}
	}
	_, err := broker.NewPeople(aliases)
	problem(err)
	for _, accounts := range aliases {
		for _, account := range accounts {
			if provider, _, err := broker.ParsePerson(account); err == nil {
				problem(known.checkProvider(provider))
			}
		}
	}
}

// checkPart reports a part of a ceiling that the catalogue does not have. A name with a typo
// would take away what the operator meant to leave.
func checkPart(part broker.CeilingPart, catalogue broker.Catalogue) error {
	e := catalogue[part.Entitlement]
	if e == nil {
		near := broker.Nearest(part.Entitlement, slices.Sorted(maps.Keys(catalogue)))
		return fmt.Errorf("ceiling: entitlement %q does not exist%s", part.Entitlement, cmp.Or(broker.DidYouMean(near), ": add it to the catalogue or correct the name"))
	}
	if len(e.Scopes) == 0 && len(part.Scopes) > 0 {
		return fmt.Errorf("ceiling: entitlement %q has no scopes: write %s: all", part.Entitlement, part.Entitlement)
	}
	for _, scope := range part.Scopes {
		if !slices.Contains(e.Scopes, scope) {
			return fmt.Errorf("ceiling: entitlement %q has no scope %q%s", part.Entitlement, scope, cmp.Or(broker.DidYouMean(broker.Nearest(scope, e.Scopes)), ": the scopes are "+strings.Join(e.Scopes, " ")))
		}
	}
	return nil
}

// checkLabels reports workload labels with a path, kind, person or ceiling that is not
// valid.
func checkLabels(labels []broker.WorkloadLabels, catalogue broker.Catalogue, known *names, ps *problems) {
	for i, m := range labels {
		problem := func(err error) {
			if err != nil {
				ps.add(Problem{File: "attest.workloads", Key: fmt.Sprintf("attest/workloads/%d", i), Text: fmt.Sprintf("under %q: %v", m.Under, err)})
			}
		}
		problem(known.checkPathOrDomain(m.Under))
		if m.Kind != broker.KindWorkload && m.Kind != broker.KindAgent {
			problem(fmt.Errorf("kind %q: write %s or %s", m.Kind, broker.KindWorkload, broker.KindAgent))
		}
		for _, person := range m.Accountable {
			problem(known.checkPerson(person))
		}
		if m.Ceiling != nil {
			for _, part := range m.Ceiling.Parts {
				problem(checkPart(part, catalogue))
			}
		}
	}
}
