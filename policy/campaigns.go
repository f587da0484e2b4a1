package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/broker"
)

// campaignsName is the file of the access reviews.
const campaignsName = "reviews.yaml"

// Bounds of a campaign.
const (
	maxCampaigns = 100
	maxScope     = 1000 // names of one kind
	maxReminders = 10
	maxSpan      = 2 * 366 * 24 * time.Hour
	minSpan      = time.Minute
)

// A campaignEntry is one entry of reviews.yaml.
type campaignEntry struct {
	Description string         `yaml:"description"`
	Scope       scopeEntry     `yaml:"scope"`
	Reviewers   []string       `yaml:"reviewers"` // owner, manager or groups; tried in this order
	Fallback    string         `yaml:"fallback"`  // a group
	RunBy       string         `yaml:"run_by"`    // a group; default: fallback
	Schedule    *scheduleEntry `yaml:"schedule"`
	Deadline    string         `yaml:"deadline"`
	Remind      []string       `yaml:"remind"`
	Escalate    []stepEntry    `yaml:"escalate"`
	Signed      string         `yaml:"signed"` // "required"
}

type scopeEntry struct {
	Permits          []string `yaml:"permits"`
	Marks            []string `yaml:"marks"`
	Groups           []string `yaml:"groups"`
	Suppliers        []string `yaml:"suppliers"`
	GrantsLongerThan string   `yaml:"grants_longer_than"`
}

type scheduleEntry struct {
	First string `yaml:"first"` // a date
	Every string `yaml:"every"`
}

type stepEntry struct {
	Before string `yaml:"before"`
	To     string `yaml:"to"` // a group
}

// A campaignsFile is reviews.yaml while it is loaded.
type campaignsFile struct {
	*entriesFile
	known *names
	plans map[string]*broker.CampaignPlan
}

// loadCampaigns reads reviews.yaml; src may be nil. The names of groups and suppliers must be
// known; checkPermits checks those of permits later.
func loadCampaigns(src *source, known *names, ps *problems) *campaignsFile {
	f := &campaignsFile{known: known, plans: map[string]*broker.CampaignPlan{}}
	if src == nil {
		return f
	}
	f.entriesFile = newEntriesFile(src, ps, "campaign", "quarterly: {scope: {permits: [all]}, fallback: security, deadline: 14d}", checkCampaignName)
	entries := f.entries()
	for _, name := range sortedKeys(entries) {
		if e := decodeEntry[campaignEntry](f.entriesFile, name, entries[name]); e != nil {
			f.plans[name] = f.plan(name, e)
		}
	}
	if len(f.plans) > maxCampaigns {
		f.report(Problem{File: src.name, Line: 1, Column: 1, Text: fmt.Sprintf("%d campaigns exceed the limit of %d: merge some", len(f.plans), maxCampaigns)})
	}
	return f
}

func checkCampaignName(name string) error {
	if !idForm.MatchString(name) {
		return fmt.Errorf("%q can't name a campaign: use 1 to 64 of a-z, 0-9 and '-', and start with a letter or digit", name)
	}
	return nil
}

// plan checks an entry and returns its plan. After a problem, the plan is incomplete.
func (f *campaignsFile) plan(name string, e *campaignEntry) *broker.CampaignPlan {
	report := func(needle string, err error) { f.reportAt(name, needle, err) }
	p := &broker.CampaignPlan{
		Name: name, Description: e.Description, Reviewers: e.Reviewers, Fallback: e.Fallback, RunBy: cmp.Or(e.RunBy, e.Fallback),
		Scope: broker.CampaignScope{Permits: e.Scope.Permits, Marks: e.Scope.Marks, Groups: e.Scope.Groups, Suppliers: e.Scope.Suppliers},
	}
	if e.Description != "" {
		report("description", parseReason(&annotations{}, e.Description))
	}
	if e.Fallback == "" {
		report(name, errors.New("fallback is missing: name the group that reviews what no other person may review"))
	} else {
		report("fallback", f.known.checkGroup(e.Fallback))
	}
	if e.RunBy != "" {
		report("run_by", f.known.checkGroup(e.RunBy))
	}
	for _, r := range e.Reviewers {
		if r != broker.ReviewerOwner && r != broker.ReviewerManager {
			report(r, f.known.checkGroup(r))
		}
	}
	if e.Scope.GrantsLongerThan != "" {
		var err error
		p.Scope.GrantsLongerThan, err = parseSpan(e.Scope.GrantsLongerThan)
		report("grants_longer_than", err)
	}
	if p.Signed = e.Signed == "required"; e.Signed != "" && !p.Signed {
		report("signed", fmt.Errorf("signed: %q: write \"required\" or remove the key", e.Signed))
	}
	f.times(p, e)
	f.scope(p)
	return p
}

// times sets the schedule, the deadline and what happens before it.
func (f *campaignsFile) times(p *broker.CampaignPlan, e *campaignEntry) {
	var err error
	if p.Deadline, err = parseSpan(e.Deadline); err != nil {
		f.reportAt(p.Name, "deadline", fmt.Errorf("deadline: %w", err))
	}
	if s := e.Schedule; s != nil {
		p.First, err = time.Parse(time.DateOnly, s.First)
		if err != nil {
			f.reportAt(p.Name, "first", fmt.Errorf("first: %q: write a date, such as %q", s.First, "2026-01-15"))
		}
		p.Every, err = parseSpan(s.Every)
		if err == nil && p.Every <= p.Deadline {
			err = errors.New("a campaign must end before the next one starts: write a longer time than deadline")
		}
		if err != nil {
			f.reportAt(p.Name, "every", fmt.Errorf("every: %w", err))
		}
	}
	before := func(key, text string) time.Duration {
		d, err := parseSpan(text)
		if err == nil && d >= p.Deadline {
			err = fmt.Errorf("%q: write a time before the deadline that is shorter than deadline", text)
		}
		if err != nil {
			f.reportAt(p.Name, key, fmt.Errorf("%s: %w", key, err))
		}
		return d
	}
	for _, text := range e.Remind {
		p.Remind = append(p.Remind, before("remind", text))
	}
	for _, step := range e.Escalate {
		p.Escalate = append(p.Escalate, broker.Escalation{After: before("escalate", step.Before), Group: step.To})
		f.reportAt(p.Name, "escalate", f.known.checkGroup(step.To))
	}
	slices.SortFunc(p.Remind, func(a, b time.Duration) int { return cmp.Compare(b, a) })
	slices.SortStableFunc(p.Escalate, func(a, b broker.Escalation) int { return cmp.Compare(b.After, a.After) })
	if len(p.Remind) > maxReminders || len(p.Escalate) > maxEscalations {
		f.reportAt(p.Name, "remind", fmt.Errorf("more than %d reminders or %d escalations: remove some", maxReminders, maxEscalations))
	}
}

// scope checks that the campaign reviews something, and the names of groups and paths.
func (f *campaignsFile) scope(p *broker.CampaignPlan) {
	s := &p.Scope
	if len(s.Permits)+len(s.Marks)+len(s.Groups)+len(s.Suppliers) == 0 && s.GrantsLongerThan == 0 {
		f.reportAt(p.Name, "scope", errors.New("scope selects nothing: write permits, marks, groups, suppliers or grants_longer_than"))
	}
	for _, list := range [][]string{s.Permits, s.Marks, s.Groups, s.Suppliers} {
		if len(list) > maxScope {
			f.reportAt(p.Name, "scope", fmt.Errorf("scope lists more than %d names: write [all], or several campaigns", maxScope))
		}
		if slices.Contains(list, broker.ScopeAll) && len(list) > 1 {
			f.reportAt(p.Name, "all", errors.New("all includes the other names: remove them"))
		}
		if twice := duplicate(list); twice != "" {
			f.reportAt(p.Name, twice, fmt.Errorf("%q appears twice: remove one", twice))
		}
	}
	for _, g := range s.Groups {
		if g != broker.ScopeAll {
			f.reportAt(p.Name, g, f.known.checkGroup(g))
		}
	}
	for _, name := range s.Suppliers {
		if name != broker.ScopeAll {
			f.reportAt(p.Name, name, f.known.checkSupplier(name))
		}
	}
	for _, path := range s.Marks {
		if path != broker.ScopeAll {
			f.reportAt(p.Name, path, f.known.checkPathOrDomain(path))
		}
	}
}

// checkPermits reports permits that no policy has.
func (f *campaignsFile) checkPermits(permits set) {
	for name, p := range f.plans {
		for _, id := range p.Scope.Permits {
			if id != broker.ScopeAll {
				f.reportAt(name, id, checkExists(permits, "permit", id, "correct the name"))
			}
		}
	}
}

// parseSpan reads a time of days ("14d") or a duration of Go ("36h"). A day has 24 hours.
func parseSpan(s string) (d time.Duration, err error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.Atoi(days)
		if err == nil && n >= 1 && time.Duration(n) <= maxSpan/(24*time.Hour) && strconv.Itoa(n) == days {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	} else if d, err = time.ParseDuration(s); err == nil && d >= minSpan && d <= maxSpan && d%time.Second == 0 {
		return d, nil
	}
	return 0, fmt.Errorf("%q: write a time from 1m to 732d, such as %q or %q", s, "14d", "36h")
}
