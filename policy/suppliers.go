package policy

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"accessbroker.internal/broker"
)

// suppliersName names the file of suppliers, next to the policies.
const suppliersName = "suppliers.yaml"

const maxQuestion = 500 // bytes

// A supplierText is one entry of suppliers.yaml.
type supplierText struct {
	Name         string         `yaml:"name"`    // for people; default: the key
	Sponsor      string         `yaml:"sponsor"` // a group of groups.yaml, or a person
	Contract     contractText   `yaml:"contract"`
	TrustDomains []string       `yaml:"trust_domains"`
	Paths        []string       `yaml:"paths"`
	Providers    []string       `yaml:"providers"` // identity providers of its people
	Groups       []claim        `yaml:"groups"`    // groups of its people, as their provider names them
	Ceiling      []string       `yaml:"ceiling"`   // entitlements
	Assessment   assessmentText `yaml:"assessment"`
	Extension    extensionText  `yaml:"extension"`
}

type contractText struct {
	Start string `yaml:"start"`
	End   string `yaml:"end"` // a date is the last day of the contract
}

type assessmentText struct {
	By        string   `yaml:"by"`     // a group
	Signed    string   `yaml:"signed"` // "required"
	Questions []string `yaml:"questions"`
}

type extensionText struct {
	By string `yaml:"by"` // a group
}

// A suppliersFile is suppliers.yaml while it is loaded.
type suppliersFile struct{ *entriesFile }

// loadSuppliers reads suppliers.yaml; src may be nil. It adds every name to known, even if
// the supplier is malformed.
func loadSuppliers(src *source, known *names, ps *problems) broker.Suppliers {
	all := broker.NewSuppliers()
	if src == nil {
		return all
	}
	f := suppliersFile{newEntriesFile(src, ps, "supplier", "acme-data: {sponsor: procurement, …}", checkSupplierName)}
	entries := f.entries()
	known.anySupplier = f.unknown
	for name := range f.lines {
		known.suppliers[name] = true
	}
	for _, name := range sortedKeys(entries) {
		if text := decodeEntry[supplierText](f.entriesFile, name, entries[name]); text != nil {
			f.add(all, f.supplier(name, text, known))
		}
	}
	return all
}

func checkSupplierName(name string) error {
	if !groupForm.MatchString(name) {
		return fmt.Errorf("%q can't name a supplier: use 1 to 64 of a-z, 0-9, '.', '-' and '_', and start with a letter or digit", name)
	}
	return nil
}

// add adds a supplier to the others, and reports what belongs to another one already.
func (f suppliersFile) add(all broker.Suppliers, s *broker.Supplier) {
	clashes := all.Add(s)
	for _, name := range sortedKeys(clashes) {
		f.reportAt(s.Name, name, clashes[name])
	}
}

// supplier converts an entry, and reports its mistakes.
func (f suppliersFile) supplier(name string, text *supplierText, known *names) *broker.Supplier {
	s := &broker.Supplier{
		Name: name, Title: text.Name, Sponsor: text.Sponsor,
		TrustDomains: text.TrustDomains, Paths: text.Paths, Providers: text.Providers,
		Ceiling: slices.Sorted(slices.Values(text.Ceiling)), Assessors: text.Assessment.By, Signed: text.Assessment.Signed != "",
		Questions: text.Assessment.Questions, Extenders: text.Extension.By,
	}
	for _, g := range text.Groups {
		s.Groups = append(s.Groups, broker.ProviderGroup(g))
	}
	var err error
	s.Starts, err = parseDay(text.Contract.Start, false)
	f.reportAt(name, "start", err)
	s.Ends, err = parseDay(text.Contract.End, true)
	f.reportAt(name, "end", err)
	f.checkSponsor(s, known)
	f.checkIdentities(s, known)
	f.checkTerms(s, text, known)
	s.Digest = supplierDigest(s)
	return s
}

// supplierDigest returns the digest of a supplier: those who assess or approve it sign
// what they saw.
func supplierDigest(s *broker.Supplier) [32]byte {
	text, err := json.Marshal(s) // cannot fail: strings and times
	if err != nil {
		panic(err)
	}
	return sha256.Sum256(append([]byte("accessbroker/supplier/v1\n"), text...))
}

// parseDay reads a time, or a day in UTC. The end of a day is the start of the next one.
func parseDay(s string, end bool) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err == nil {
		t, end = t.UTC().Truncate(time.Second), false
	} else {
		t, err = time.Parse(time.DateOnly, s)
	}
	if err == nil && (t.Year() < 1970 || t.Year() > 2200) {
		return time.Time{}, fmt.Errorf("%q: write a year from 1970 to 2200", s)
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("%q: write a day such as 2026-12-31, or a time such as 2026-12-31T18:00:00Z", s)
	}
	if end {
		t = t.AddDate(0, 0, 1)
	}
	return t, nil
}

// checkSponsor reports a sponsor that does not exist or is not internal.
func (f suppliersFile) checkSponsor(s *broker.Supplier, known *names) {
	switch {
	case s.Sponsor == "":
		f.reportAt(s.Name, "sponsor", errors.New("it has no sponsor: name the internal group or person that answers for it in sponsor"))
	case s.SponsorGroup() != "":
		f.reportAt(s.Name, s.Sponsor, known.checkGroup(s.Sponsor))
	default:
		f.reportAt(s.Name, s.Sponsor, known.checkPerson(s.Sponsor))
		if provider, _, _ := strings.Cut(s.Sponsor, "/"); slices.Contains(s.Providers, provider) {
			f.reportAt(s.Name, s.Sponsor, errors.New("the sponsor is one of the supplier's own people: name an internal one"))
		}
	}
}

// checkIdentities reports trust domains, paths, providers and groups that do not exist.
func (f suppliersFile) checkIdentities(s *broker.Supplier, known *names) {
	if len(s.TrustDomains)+len(s.Paths)+len(s.Providers)+len(s.Groups) == 0 {
		f.reportAt(s.Name, "", errors.New("it has no identities: list trust_domains, paths, providers or groups"))
	}
	for _, domain := range s.TrustDomains {
		f.reportAt(s.Name, domain, known.checkDomain(domain))
		if domain == known.home {
			f.reportAt(s.Name, domain, errors.New("this is your own trust domain: list the supplier's paths in it in paths"))
		}
	}
	for _, path := range s.Paths {
		f.reportAt(s.Name, path, known.checkPath(path))
	}
	for _, provider := range s.Providers {
		f.reportAt(s.Name, provider, known.checkProvider(provider))
	}
	for _, g := range s.Groups {
		f.reportAt(s.Name, g.Provider, known.checkProvider(g.Provider))
		if g.Provider == "" || g.Group == "" {
			f.reportAt(s.Name, "groups", errors.New("a group needs both provider and group"))
		}
	}
	for _, list := range [][]string{s.TrustDomains, s.Paths, s.Providers, s.Ceiling} {
		if twice := duplicate(list); twice != "" {
			f.reportAt(s.Name, twice, fmt.Errorf("%q appears twice: remove one", twice))
		}
	}
}

// checkTerms reports mistakes in the contract, the ceiling and the assessment.
func (f suppliersFile) checkTerms(s *broker.Supplier, text *supplierText, known *names) {
	problem := func(needle, format string, args ...any) { f.reportAt(s.Name, needle, fmt.Errorf(format, args...)) }
	switch {
	case text.Contract.End == "":
		problem("contract", "the contract has no end: set contract: {start: …, end: …}")
	case !s.Ends.IsZero() && !s.Starts.Before(s.Ends):
		problem("contract", "the contract ends before it starts: correct contract")
	}
	if len(s.Ceiling) == 0 {
		problem("ceiling", "it has no ceiling, so it could have nothing: list the entitlements that it may ever have in ceiling")
	}
	for _, e := range s.Ceiling {
		f.reportAt(s.Name, e, checkExists(known.entitlements, "entitlement", e, "add it to the catalogue or correct the name"))
	}
	for _, group := range []string{s.Assessors, s.Extenders} {
		if group != "" {
			f.reportAt(s.Name, group, known.checkGroup(group))
		}
	}
	switch a := text.Assessment; {
	case a.By == "" && (a.Signed != "" || len(a.Questions) > 0):
		problem("assessment", "the assessment names no group: set by to the group that assesses the supplier")
	case a.By != "" && a.By == s.Sponsor:
		problem("assessment", "the sponsor can't assess its own supplier: set by to another group")
	case a.Signed != "" && a.Signed != "required":
		problem("signed", "signed: %q: write required or remove it", a.Signed)
	case len(a.Questions) > broker.MaxQuestions:
		problem("questions", "there are more than %d questions: merge some", broker.MaxQuestions)
	}
	for _, q := range s.Questions {
		if strings.TrimSpace(q) == "" || len(q) > maxQuestion || !utf8.ValidString(q) {
			problem("questions", "a question has 1 to %d bytes", maxQuestion)
		}
		if err := broker.CheckLine(broker.ErrInvalidRequest, "a question", q, maxQuestion); err != nil {
			problem("questions", "a question is one line of text without control characters")
		}
	}
	if twice := duplicate(s.Questions); twice != "" {
		problem(twice, "the question %q appears twice: remove one", twice)
	}
}
