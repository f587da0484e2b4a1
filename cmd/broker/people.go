package main

import (
	"crypto/x509"
	"maps"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/attest"
	"accessbroker.internal/broker"
	"accessbroker.internal/server"
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

// A providerSettings is an OpenID provider, checked.
type providerSettings struct {
	name, issuer, clientID, secretFile, groups, manager, caFile string
	scopes                                                      []string
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
		c.s.people = append(c.s.people, providerSettings{
			name: name, issuer: string(f.Issuer), clientID: f.ClientID, secretFile: c.file(f.ClientSecretFile),
			groups: f.GroupsClaim, manager: f.ManagerClaim, caFile: c.file(f.CAFile), scopes: scopes,
		})
	}
}

// sessions checks how long sessions of people last.
func (c *checker) sessions(f sessionsFile) {
	c.s.sessionIdle, c.s.sessionLasts = time.Duration(f.Idle), time.Duration(f.Lasts)
	const key = "server/sessions"
	switch most := 30 * 24 * time.Hour; {
	case f.Idle < 0 || f.Lasts < 0 || c.s.sessionLasts > most:
		c.bad(key, "idle and lasts are positive, and lasts is at most %s", broker.Short(most))
	case f.Idle > 0 && c.s.sessionIdle < time.Minute:
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
	c.s.ticketURL = text
}

func isLoopback(u *url.URL) bool {
	return u.Scheme == "http" && (u.Hostname() == "localhost" || u.Hostname() == "127.0.0.1" || u.Hostname() == "::1")
}

// openPeople makes the providers of the settings; nil: nobody can log in.
func (s *settings) openPeople() (*attest.People, error) {
	if len(s.people) == 0 {
		return nil, nil
	}
	var configs []attest.ProviderConfig
	for _, p := range s.people {
		var roots *x509.CertPool
		if p.caFile != "" {
			var err error
			if roots, err = readRoots(p.caFile); err != nil {
				return nil, err
			}
		}
		configs = append(configs, attest.ProviderConfig{
			Name: p.name, Issuer: p.issuer, ClientID: p.clientID, Roots: roots,
			Secret:      func() (string, error) { return readSecret(p.secretFile) },
			RedirectURL: s.uiURL.String() + server.CallbackPath(s.providers(), p.name),
			Scopes:      p.scopes, GroupsClaim: p.groups, ManagerClaim: p.manager,
		})
	}
	return attest.NewPeople(configs...)
}

// passkeyWait is set by the linker, in tests that can't wait for a day. Whoever
// verifies the log of such a program is told.
var passkeyWait string

// openPasskeys makes what enrols passkeys, for the host of the pages; nil: that
// has no name, and passkeys need one.
func (s *settings) openPasskeys() (*attest.Passkeys, error) {
	host := s.uiURL.Hostname()
	if _, err := netip.ParseAddr(host); err == nil || len(s.people) == 0 {
		return nil, nil
	}
	return attest.NewPasskeys(host, s.uiURL.Scheme+"://"+s.uiURL.Host)
}

// providers names the OpenID providers.
func (s *settings) providers() (names []string) {
	for _, p := range s.people {
		names = append(names, p.name)
	}
	return names
}
