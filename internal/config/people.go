package config

import (
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/broker"
)

// personFile is an OpenID provider, as the operator's file has it.
type personFile struct {
	Issuer              plain    `yaml:"issuer"`
	ClientID            string   `yaml:"client_id"`
	ClientSecretFile    string   `yaml:"client_secret_file"`
	GroupsClaim         string   `yaml:"groups_claim"`
	ManagerClaim        string   `yaml:"manager_claim"`
	Scopes              []plain  `yaml:"scopes"`
	CAFile              string   `yaml:"ca_file"`
	DelegationAudiences []string `yaml:"delegation_audiences"` // nobody acts for people yet: tokens of theirs are refused
}

type sessionsFile struct {
	Idle  duration `yaml:"idle"`
	Lasts duration `yaml:"lasts"`
}

// A Provider is an OpenID provider with which people log in.
type Provider struct {
	Name, Issuer, ClientID, SecretFile, CAFile string
	GroupsClaim, ManagerClaim                  string
	Scopes                                     []string // nil: the usual ones
}

// providerName has neither a dot nor a colon, so that no person is taken for
// anything else.
var providerName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

// people checks the providers.
func (c *checker) people(list map[string]personFile) {
	for _, name := range slices.Sorted(maps.Keys(list)) {
		f := list[name]
		at := "attest/people/" + name
		if !providerName.MatchString(name) {
			c.bad(at, "%q is not a name of a provider: lower-case letters, digits and dashes, 32 at most", name)
		}
		u, err := url.Parse(string(f.Issuer))
		if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && !isLoopback(u) {
			c.bad(at+"/issuer", "give the provider's issuer, an https URL, exactly as its tokens name it")
		}
		if f.ClientID == "" || slices.Contains(f.DelegationAudiences, f.ClientID) {
			c.bad(at+"/client_id", "give the id of the client that the provider knows the broker as; delegation_audiences are others")
		}
		if f.ClientSecretFile == "" {
			c.bad(at+"/client_secret_file", "name the file that holds the client's secret")
		} else {
			c.secret(at+"/client_secret_file", f.ClientSecretFile)
		}
		c.roots(at+"/ca_file", f.CAFile)
		var scopes []string // nil: those that are usual; none is something else
		if f.Scopes != nil {
			scopes = toStrings(f.Scopes)
		}
		c.cfg.Providers = append(c.cfg.Providers, Provider{
			Name: name, Issuer: string(f.Issuer), ClientID: f.ClientID, SecretFile: c.file(f.ClientSecretFile),
			GroupsClaim: f.GroupsClaim, ManagerClaim: f.ManagerClaim, CAFile: c.file(f.CAFile), Scopes: scopes,
		})
	}
}

// sessions checks how long sessions of people last.
func (c *checker) sessions(f sessionsFile) {
	c.cfg.SessionIdle, c.cfg.SessionLasts = time.Duration(f.Idle), time.Duration(f.Lasts)
	const key = "server/sessions"
	switch most := 30 * 24 * time.Hour; {
	case f.Idle < 0 || f.Lasts < 0 || c.cfg.SessionLasts > most:
		c.bad(key, "idle and lasts are positive, and lasts is at most %s", broker.Short(most))
	case f.Idle > 0 && c.cfg.SessionIdle < time.Minute:
		c.bad(key+"/idle", "at least 1m: how long a session is unused is known no better")
	}
}

// ticket checks where tickets are looked at.
func (c *checker) ticket(text string) {
	before, _, holds := strings.Cut(text, "{ticket}")
	u, err := url.Parse(before)
	if text != "" && (err != nil || u.Scheme != "https" || u.Host == "" || u.Path == "" || u.User != nil || !holds) {
		c.bad("server/ticket_url", "give an https URL that holds {ticket}, such as https://tracker.acme.test/browse/{ticket}")
	}
	c.cfg.TicketURL = text
}

func isLoopback(u *url.URL) bool {
	return u.Scheme == "http" && (u.Hostname() == "localhost" || u.Hostname() == "127.0.0.1" || u.Hostname() == "::1")
}

// ProviderNames returns the names of the OpenID providers.
func (c *Config) ProviderNames() (names []string) {
	for _, p := range c.Providers {
		names = append(names, p.Name)
	}
	return names
}
