package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/tickets"
)

// trackerFile is one ticket system.
type trackerFile struct {
	Jira       *jiraFile       `yaml:"jira"`
	ServiceNow *serviceNowFile `yaml:"servicenow"`
	GitHub     *gitHubFile     `yaml:"github"`
	HTTP       *httpFile       `yaml:"http"`

	Prefix  string              `yaml:"prefix"`  // of its tickets, followed by a number
	Pattern string              `yaml:"pattern"` // of its tickets
	States  map[string][]string `yaml:"states"`
	People  map[string]string   `yaml:"people"`
	Person  string              `yaml:"person"` // the form of the identity of other assignees

	Interval   duration `yaml:"interval"`
	StaleAfter duration `yaml:"stale_after"`
	OnStale    string   `yaml:"on_stale"`
	Webhook    string   `yaml:"webhook_secret_file"`
}

// hostFile is where a ticket system is.
type hostFile struct {
	URL          string
	CAFile       string
	AllowPrivate bool
	Username     string
	PasswordFile string
	TokenFile    string
	TokenHeader  string
}

type jiraFile struct {
	URL          string     `yaml:"url"`
	CAFile       string     `yaml:"ca_file"`
	AllowPrivate bool       `yaml:"allow_private"`
	Username     string     `yaml:"username"`
	PasswordFile string     `yaml:"password_file"`
	TokenFile    string     `yaml:"token_file"`
	Server       bool       `yaml:"server"` // Jira Server or Data Center
	AssigneeBy   string     `yaml:"assignee_by"`
	Window       windowFile `yaml:"window"`
}

type serviceNowFile struct {
	URL          string     `yaml:"url"`
	CAFile       string     `yaml:"ca_file"`
	AllowPrivate bool       `yaml:"allow_private"`
	Username     string     `yaml:"username"`
	PasswordFile string     `yaml:"password_file"`
	TokenFile    string     `yaml:"token_file"`
	TokenHeader  string     `yaml:"token_header"`
	Table        string     `yaml:"table"`
	AssigneeBy   string     `yaml:"assignee_by"`
	Window       windowFile `yaml:"window"`
}

type gitHubFile struct {
	URL          string `yaml:"url"` // of the API
	CAFile       string `yaml:"ca_file"`
	AllowPrivate bool   `yaml:"allow_private"`
	TokenFile    string `yaml:"token_file"`
	Repository   string `yaml:"repository"`
	AssigneeBy   string `yaml:"assignee_by"`
}

type httpFile struct {
	URL          string     `yaml:"url"` // with {ticket}
	CAFile       string     `yaml:"ca_file"`
	AllowPrivate bool       `yaml:"allow_private"`
	Username     string     `yaml:"username"`
	PasswordFile string     `yaml:"password_file"`
	TokenFile    string     `yaml:"token_file"`
	TokenHeader  string     `yaml:"token_header"`
	Fields       fieldsFile `yaml:"fields"`
}

// windowFile names the fields of a ticket with its change window.
type windowFile struct {
	From  string `yaml:"from"`
	Until string `yaml:"until"`
}

// fieldsFile has JSON pointers.
type fieldsFile struct {
	ID       string `yaml:"id"`
	Title    string `yaml:"title"`
	State    string `yaml:"state"`
	Assignee string `yaml:"assignee"`
	From     string `yaml:"window_from"`
	Until    string `yaml:"window_until"`
}

// A Tracker is a ticket system of the operator's file, in plain values.
type Tracker struct {
	Name       string
	Pattern    string // of its tickets, anchored
	Kind       string // jira, servicenow, github or http
	Host       hostFile
	Jira       tickets.JiraConfig // without Host, as are the others
	ServiceNow tickets.ServiceNowConfig
	GitHub     tickets.GitHubConfig
	HTTP       tickets.GenericConfig
	States     map[string][]string
	People     map[string]string
	Person     string
	Interval   time.Duration
	StaleAfter time.Duration
	Hold       bool   // running leases outlast a tracker that does not answer
	Webhook    string // the file of its secret; empty: no webhook
}

// Times of trackers.
const (
	defaultInterval   = time.Minute
	shortestInterval  = 5 * time.Second
	longestInterval   = time.Hour
	defaultStaleAfter = 5 * time.Minute
	longestStaleAfter = 24 * time.Hour
	staleIntervals    = 2 // stale_after has at least so many intervals, so that one failed look ends nothing
)

func (c *checker) tickets() {
	for _, name := range slices.Sorted(maps.Keys(c.d.file.Tickets)) {
		key := "tickets/" + name
		c.name(key, name)
		if c.cfg.Trackers == nil {
			c.cfg.Trackers = map[string]Tracker{}
		}
		c.cfg.Trackers[name] = c.tracker(key, name, c.d.file.Tickets[name])
	}
}

// tracker checks one ticket system.
func (c *checker) tracker(key, name string, f trackerFile) Tracker {
	t := Tracker{
		Name: name, States: f.States, People: f.People, Person: f.Person, Webhook: c.path(f.Webhook),
		Interval: cmp.Or(time.Duration(f.Interval), defaultInterval), StaleAfter: time.Duration(f.StaleAfter),
	}
	c.trackerKind(key, &t, f)
	c.ticketPattern(key, &t, f)
	c.ticketPeople(key, &t)
	c.ticketStates(key, f.States)
	t.StaleAfter = cmp.Or(t.StaleAfter, max(defaultStaleAfter, staleIntervals*t.Interval))
	switch {
	case t.Interval < shortestInterval || t.Interval > longestInterval:
		c.report(key+"/interval", "must be %s to %s", shortestInterval, broker.FormatDuration(longestInterval))
	case t.StaleAfter < staleIntervals*t.Interval || t.StaleAfter > longestStaleAfter:
		c.report(key+"/stale_after", "must be at least two intervals, %s, and at most %s", broker.FormatDuration(staleIntervals*t.Interval), broker.FormatDuration(longestStaleAfter))
	}
	switch f.OnStale {
	case "", "end":
	case "hold":
		t.Hold = true
	default:
		c.report(key+"/on_stale", "choose end or hold: what becomes of running leases while the tracker does not answer")
	}
	c.secret(key+"/webhook_secret_file", f.Webhook)
	if _, err := t.Open(); err != nil && !slices.ContainsFunc(c.wrong, func(k string) bool { return within(k, key) }) {
		c.report(key+"/"+t.Kind, "%v", err)
	}
	return t
}

// trackerKind reads the one kind of a ticket system.
func (c *checker) trackerKind(key string, t *Tracker, f trackerFile) {
	kinds := 0
	if j := f.Jira; j != nil {
		kinds, t.Kind = kinds+1, "jira"
		t.Host = hostFile{j.URL, j.CAFile, j.AllowPrivate, j.Username, j.PasswordFile, j.TokenFile, ""}
		by := map[string]string{"": "accountId", "account_id": "accountId", "name": "name", "email": "emailAddress"}
		if j.Server {
			by[""] = "name"
		}
		t.Jira = tickets.JiraConfig{Server: j.Server, AssigneeBy: c.assigneeBy(key+"/jira", by, j.AssigneeBy), From: j.Window.From, Until: j.Window.Until}
		c.window(key+"/jira/window", j.Window)
	}
	if s := f.ServiceNow; s != nil {
		kinds, t.Kind = kinds+1, "servicenow"
		t.Host = hostFile{s.URL, s.CAFile, s.AllowPrivate, s.Username, s.PasswordFile, s.TokenFile, s.TokenHeader}
		by := map[string]string{"": "assigned_to", "sys_id": "assigned_to", "user_name": "assigned_to.user_name", "email": "assigned_to.email"}
		t.ServiceNow = tickets.ServiceNowConfig{Table: cmp.Or(s.Table, "incident"), AssigneeBy: c.assigneeBy(key+"/servicenow", by, s.AssigneeBy), From: s.Window.From, Until: s.Window.Until}
		if t.ServiceNow.Table == "change_request" && s.Window == (windowFile{}) {
			t.ServiceNow.From, t.ServiceNow.Until = "start_date", "end_date"
		}
		c.window(key+"/servicenow/window", s.Window)
	}
	if g := f.GitHub; g != nil {
		kinds, t.Kind = kinds+1, "github"
		t.Host = hostFile{URL: cmp.Or(g.URL, "https://api.github.com"), CAFile: g.CAFile, AllowPrivate: g.AllowPrivate, TokenFile: g.TokenFile}
		t.GitHub = tickets.GitHubConfig{Repository: g.Repository, AssigneeBy: c.assigneeBy(key+"/github", map[string]string{"": "login", "login": "login", "id": "id"}, g.AssigneeBy)}
	}
	if h := f.HTTP; h != nil {
		kinds, t.Kind = kinds+1, "http"
		t.Host = hostFile{h.URL, h.CAFile, h.AllowPrivate, h.Username, h.PasswordFile, h.TokenFile, h.TokenHeader}
		t.HTTP = tickets.GenericConfig{Fields: tickets.Fields(h.Fields)}
		c.window(key+"/http/fields", windowFile{h.Fields.From, h.Fields.Until})
	}
	if kinds != 1 {
		c.report(key, "write exactly one kind: jira, servicenow, github or http")
	}
	c.ticketHost(key+"/"+t.Kind, &t.Host)
}

// assigneeBy returns the field by which a system names an assignee.
func (c *checker) assigneeBy(key string, fields map[string]string, name string) string {
	field, ok := fields[name]
	if !ok {
		names := slices.Sorted(maps.Keys(fields))
		c.report(key+"/assignee_by", "choose one of %s", strings.Join(names[1:], ", "))
	}
	return field
}

// fieldForm is the form of a field's name in Jira and ServiceNow.
var fieldForm = regexp.MustCompile(`^(/.{1,200}|[A-Za-z][A-Za-z0-9_.]{0,100})$`)

// window checks that a window has both ends.
func (c *checker) window(key string, w windowFile) {
	for _, field := range []string{w.From, w.Until} {
		if (w.From != "" || w.Until != "") && !fieldForm.MatchString(field) {
			c.report(key, "name both ends of the change window: the field with its start and the field with its end")
			return
		}
	}
}

// ticketHost checks how the broker proves itself to a ticket system.
func (c *checker) ticketHost(key string, h *hostFile) {
	h.CAFile, h.PasswordFile, h.TokenFile = c.path(h.CAFile), c.path(h.PasswordFile), c.path(h.TokenFile)
	switch {
	case h.PasswordFile != "" && h.TokenFile != "":
		c.report(key, "write password_file or token_file, not both")
	case (h.Username != "") != (h.PasswordFile != ""):
		c.report(key, "username and password_file belong together")
	case h.TokenHeader != "" && (h.TokenFile == "" || !headerForm.MatchString(h.TokenHeader)):
		c.report(key+"/token_header", "write the name of the header that has the token of token_file, such as X-Api-Key")
	}
	for at, path := range map[string]string{"/password_file": h.PasswordFile, "/token_file": h.TokenFile} {
		c.secret(key+at, path)
	}
	c.roots(key+"/ca_file", h.CAFile)
}

var headerForm = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

const longestPattern = 200

// ticketPattern checks which tickets are a tracker's.
func (c *checker) ticketPattern(key string, t *Tracker, f trackerFile) {
	pattern, at := f.Pattern, key+"/pattern"
	switch {
	case (f.Prefix == "") == (f.Pattern == ""):
		c.report(key, "write which tickets are here: prefix: INC- for tickets such as INC-7, or pattern: with a regular expression")
		return
	case f.Prefix != "" && t.Kind == "github": // the prefix is not a part of an issue's number
		pattern, at = regexp.QuoteMeta(f.Prefix)+"([0-9]+)", key+"/prefix"
	case f.Prefix != "":
		pattern, at = regexp.QuoteMeta(f.Prefix)+"[0-9]+", key+"/prefix"
	}
	t.Pattern = "^(?:" + pattern + ")$"
	_, alone := regexp.Compile(pattern)
	form, err := regexp.Compile(t.Pattern)
	switch {
	case cmp.Or(alone, err) != nil || len(pattern) > longestPattern:
		c.report(at, "is not a regular expression (RE2) of at most %d bytes", longestPattern)
		t.Pattern = ""
	case form.NumSubexp() > 1:
		c.report(at, "has more than one group: one group, in parentheses, is the ticket's id in the tracker; write (?:…) for others")
	case form.MatchString(""):
		c.report(at, "matches the empty text: write + instead of *")
	}
	for other, o := range c.cfg.Trackers {
		if o.Pattern == t.Pattern && t.Pattern != "" {
			c.report(at, "tracker %s has the same tickets: a ticket belongs to one tracker", other)
		}
	}
}

// ticketPeople checks the identities of assignees.
func (c *checker) ticketPeople(key string, t *Tracker) {
	for _, assignee := range slices.Sorted(maps.Keys(t.People)) {
		c.assignee(key+"/people/"+assignee, t.People[assignee])
	}
	if t.Person == "" {
		return
	}
	if strings.Count(t.Person, "{assignee}") != 1 {
		c.report(key+"/person", "write the form of a person with {assignee}, such as login/{assignee}")
		return
	}
	c.assignee(key+"/person", strings.Replace(t.Person, "{assignee}", "x", 1))
}

// assignee checks the identity that an assignee is: a person or a workload.
func (c *checker) assignee(key, id string) {
	if err := tickets.CheckIdentity(id); err != nil {
		c.report(key, "%v; write a person, such as login/ana, or a SPIFFE ID", err)
		return
	}
	provider, _, _ := strings.Cut(id, "/")
	providers := c.d.file.Attest.People
	if _, known := providers[provider]; !strings.HasPrefix(id, "spiffe://") && len(providers) > 0 && !known {
		c.report(key, "provider %q is not in attest.people: correct the name", provider)
	}
}

// stateForm is the form of the names of states.
var stateForm = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,31}$`)

// ticketStates checks the names that statuses have in policies.
func (c *checker) ticketStates(key string, states map[string][]string) {
	closed := states[tickets.StateClosed]
	for _, name := range slices.Sorted(maps.Keys(states)) {
		at := key + "/states/" + name
		if !stateForm.MatchString(name) {
			c.report(at, "%q is not a valid name: use at most 32 lower-case letters, digits, dashes and underscores", name)
		}
		if len(states[name]) == 0 {
			c.report(at, "list the tracker's statuses that are %s", name)
		}
		for _, status := range states[name] {
			if name != tickets.StateClosed && slices.Contains(closed, status) {
				c.report(at, "%q is listed as closed too: list it once", status)
			}
		}
	}
}

// ticketStates returns the states that policies may demand; none without a tracker.
func (c *Config) ticketStates() (names []string) {
	for _, t := range c.Trackers {
		for _, name := range tickets.StateNames(t.States) {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// ticketWindows reports whether some tickets have a change window.
func (c *Config) ticketWindows() bool {
	for _, t := range c.Trackers {
		if cmp.Or(t.Jira.Until, t.ServiceNow.Until, t.HTTP.Fields.Until) != "" {
			return true
		}
	}
	return false
}

// Open returns the tracker, ready for calls. It makes none.
func (t *Tracker) Open() (*tickets.Tracker, error) {
	host := tickets.Host{URL: t.Host.URL, AllowPrivate: t.Host.AllowPrivate, Username: t.Host.Username, Header: t.Host.TokenHeader}
	if path := cmp.Or(t.Host.PasswordFile, t.Host.TokenFile); path != "" {
		host.Secret = func() (string, error) { return ReadSecret(path) }
	}
	var err error
	if t.Host.CAFile != "" {
		if host.Roots, err = ReadRoots(t.Host.CAFile); err != nil {
			return nil, err
		}
	}
	made := &tickets.Tracker{Name: t.Name, States: t.States, People: t.People, Person: t.Person, Interval: t.Interval, StaleAfter: t.StaleAfter}
	if made.Pattern, err = regexp.Compile(t.Pattern); err != nil {
		return nil, fmt.Errorf("compiling the pattern of tickets: %w", err)
	}
	if t.Webhook != "" {
		secret, err := ReadSecret(t.Webhook)
		if err != nil {
			return nil, err
		}
		made.Hook = tickets.Hook{Kind: t.Kind, Secret: []byte(secret), Repository: t.GitHub.Repository}
	}
	made.Source, err = t.open(host)
	return made, err
}

func (t *Tracker) open(host tickets.Host) (tickets.Source, error) {
	switch t.Kind {
	case "jira":
		cfg := t.Jira
		cfg.Host = host
		return tickets.NewJira(cfg)
	case "servicenow":
		cfg := t.ServiceNow
		cfg.Host = host
		return tickets.NewServiceNow(cfg)
	case "github":
		cfg := t.GitHub
		cfg.Host = host
		return tickets.NewGitHub(cfg)
	case "http":
		cfg := t.HTTP
		cfg.Host = host
		return tickets.NewGeneric(cfg)
	}
	return nil, errors.New("there is no kind of ticket system")
}
