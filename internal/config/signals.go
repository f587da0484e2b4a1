package config

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"accessbroker.internal/attest/jwks"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/outbound"
	"accessbroker.internal/signals"
)

// transmitterFile is one transmitter of shared security signals.
type transmitterFile struct {
	Issuer       string            `yaml:"issuer"`
	Audience     string            `yaml:"audience"`
	Provider     string            `yaml:"provider"`
	JWKSURI      string            `yaml:"jwks_uri"`
	KeysFile     string            `yaml:"keys_file"` // a JWK Set
	Push         *pushFile         `yaml:"push"`
	Poll         *pollFile         `yaml:"poll"`
	Verification *verificationFile `yaml:"verification"`
	Subjects     subjectsFile      `yaml:"subjects"`
	CAFile       string            `yaml:"ca_file"`
	AllowPrivate bool              `yaml:"allow_private"`
	MaxAge       duration          `yaml:"max_age"`
	StaleAfter   duration          `yaml:"stale_after"`
	OnStale      string            `yaml:"on_stale"`
	MostPercent  int               `yaml:"most_percent"`
	Always       *int              `yaml:"always"`
	Page         string            `yaml:"page"`
}

type pushFile struct {
	TokenFiles []string `yaml:"token_files"`
}

type pollFile struct {
	Endpoint  string   `yaml:"endpoint"`
	TokenFile string   `yaml:"token_file"`
	Every     duration `yaml:"every"`
}

type verificationFile struct {
	Endpoint  string   `yaml:"endpoint"`
	StreamID  string   `yaml:"stream_id"`
	TokenFile string   `yaml:"token_file"`
	Every     duration `yaml:"every"`
}

type subjectsFile struct {
	Issuers  []string          `yaml:"issuers"`
	Opaque   string            `yaml:"opaque"`
	Email    string            `yaml:"email"`
	Accounts map[string]string `yaml:"accounts"`
	Tenant   string            `yaml:"tenant"`
	Critical []string          `yaml:"critical_members"`
}

// A Transmitter of shared security signals, in plain values.
type Transmitter struct {
	Name, Issuer, Audience string
	Subjects               signals.Subjects
	KeysURL, KeysFile      string
	PushTokens             []string // files; empty: no push
	Poll                   pollFile
	Verification           verificationFile
	CAFile                 string
	AllowPrivate           bool
	MaxAge, StaleAfter     time.Duration
	Hold                   bool // running leases outlast a transmitter that is silent
	MostPercent, Always    int
	Page                   string
}

// Bounds of transmitters.
const (
	shortestPoll        = time.Second
	longestPoll         = 10 * time.Minute
	defaultVerification = 10 * time.Minute
	shortestEvery       = time.Minute
	shortestEventAge    = 5 * time.Minute
	longestEventAge     = 7 * 24 * time.Hour
	shortestSilence     = time.Minute
	longestSilence      = 7 * 24 * time.Hour
	defaultMostPercent  = 20
	defaultAlways       = 10
)

// signals checks the transmitters of shared security signals.
func (c *checker) signals() {
	for _, name := range slices.Sorted(maps.Keys(c.d.file.Signals)) {
		key := "signals/" + name
		c.name(key, name)
		t := c.transmitter(key, name, c.d.file.Signals[name])
		for _, other := range c.cfg.Transmitters {
			if other.Issuer == t.Issuer && other.Audience == t.Audience {
				c.report(key+"/issuer", "transmitter %s has the same issuer and audience: an event would belong to both", other.Name)
			}
		}
		c.cfg.Transmitters = append(c.cfg.Transmitters, t)
	}
}

func (c *checker) transmitter(key, name string, f transmitterFile) Transmitter {
	t := Transmitter{
		Name: name, Issuer: f.Issuer, Audience: f.Audience, KeysURL: f.JWKSURI, KeysFile: c.path(f.KeysFile), CAFile: c.path(f.CAFile), AllowPrivate: f.AllowPrivate,
		MaxAge: cmp.Or(time.Duration(f.MaxAge), signals.DefaultMaxAge), StaleAfter: time.Duration(f.StaleAfter),
		MostPercent: cmp.Or(f.MostPercent, defaultMostPercent), Always: defaultAlways, Page: f.Page,
	}
	if t.Audience == "" {
		t.Audience = c.cfg.ExternalURL.String()
	}
	if f.Always != nil {
		t.Always = *f.Always
	}
	if f.Issuer == "" {
		c.report(key+"/issuer", "write the transmitter's issuer, exactly as in the iss of its tokens")
	}
	c.transmitterSubjects(key, &t, f)
	c.transmitterKeys(key, f)
	c.delivery(key, &t, f)
	c.verification(key, &t, f.Verification)
	c.transmitterLimits(key, &t, f)
	c.roots(key+"/ca_file", f.CAFile)
	return t
}

// transmitterSubjects checks whom the events may be about.
func (c *checker) transmitterSubjects(key string, t *Transmitter, f transmitterFile) {
	s := f.Subjects
	t.Subjects = signals.Subjects{
		Provider: f.Provider, Issuers: s.Issuers, Opaque: s.Opaque, Email: s.Email, Accounts: s.Accounts, Tenant: s.Tenant, Critical: s.Critical,
	}
	provider, known := c.d.file.Attest.People[f.Provider]
	if !known {
		names := slices.Sorted(maps.Keys(c.d.file.Attest.People))
		c.report(key+"/provider", "write whose accounts the events are about, a name of attest.people%s", broker.DidYouMean(broker.Nearest(f.Provider, names)))
	}
	if len(s.Issuers) == 0 {
		t.Subjects.Issuers = []string{provider.Issuer}
	}
	if !slices.Contains([]string{"", signals.OpaqueSub, signals.OpaqueSession}, s.Opaque) {
		c.report(key+"/subjects/opaque", "choose what an opaque identifier is: sub or session")
	}
	if !slices.Contains([]string{"", signals.EmailSub, signals.EmailAccount}, s.Email) {
		c.report(key+"/subjects/email", "choose how an address leads to an account: sub (the account's sub is its address) or account (the account whose address it is)")
	}
	for _, id := range slices.Sorted(maps.Keys(s.Accounts)) {
		if _, _, err := broker.ParsePerson(f.Provider + "/" + s.Accounts[id]); err != nil && known {
			c.report(key+"/subjects/accounts/"+id, "%q is not the sub of an account of %s: %v", s.Accounts[id], f.Provider, err)
		}
	}
}

// transmitterKeys checks the source of the keys.
func (c *checker) transmitterKeys(key string, f transmitterFile) {
	switch {
	case (f.JWKSURI == "") == (f.KeysFile == ""):
		c.report(key, "write where the transmitter's keys are: jwks_uri or keys_file")
	case f.JWKSURI != "":
		c.endpoint(key+"/jwks_uri", f.JWKSURI, f.AllowPrivate)
	default:
		if _, err := readKeys(c.path(f.KeysFile)); err != nil {
			c.report(key+"/keys_file", "%v", err)
		}
	}
}

func (c *checker) endpoint(key, url string, allowPrivate bool) {
	if err := outbound.CheckURL(url, allowPrivate); err != nil {
		c.report(key, "%v", err)
	}
}

// maxKeysFile bounds a file of keys, in bytes.
const maxKeysFile = 1 << 20

// readKeys reads a file with a JWK Set. A key that would be left out is an error, because
// the operator wrote the file.
func readKeys(path string) ([]jwks.Key, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading keys: %w", err)
	}
	if len(text) > maxKeysFile {
		return nil, fmt.Errorf("reading keys: %s is longer than %d bytes", path, maxKeysFile)
	}
	set, err := jwks.Parse(text, "", "sig")
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading keys: %w", err)
	case len(set.LeftOut) > 0:
		return nil, fmt.Errorf("reading keys: %s", set.LeftOut[0])
	case len(set.Keys) == 0:
		return nil, fmt.Errorf("reading keys: %s has no key", path)
	}
	return set.Keys, nil
}

// delivery checks how events arrive.
func (c *checker) delivery(key string, t *Transmitter, f transmitterFile) {
	if (f.Push == nil) == (f.Poll == nil) {
		c.report(key, "write how events arrive: push or poll")
		return
	}
	if f.Push != nil {
		if len(f.Push.TokenFiles) == 0 || len(f.Push.TokenFiles) > 4 {
			c.report(key+"/push", "write token_files: 1 to 4 files, each with a bearer token that the transmitter may send")
		}
		for i, path := range f.Push.TokenFiles {
			at := fmt.Sprintf("%s/push/token_files/%d", key, i)
			if token := c.secret(at, path); token != "" && len(token) < shortestToken {
				c.report(at, "the bearer token is shorter than %d characters: make one with openssl rand -base64 32", shortestToken)
			}
			t.PushTokens = append(t.PushTokens, c.path(path))
		}
		return
	}
	t.Poll = *f.Poll
	t.Poll.TokenFile = c.path(f.Poll.TokenFile)
	c.endpoint(key+"/poll/endpoint", f.Poll.Endpoint, t.AllowPrivate)
	c.secret(key+"/poll/token_file", f.Poll.TokenFile)
	if t.Poll.Every == 0 {
		t.Poll.Every = duration(signals.DefaultPollEvery)
	}
	if every := time.Duration(t.Poll.Every); every < shortestPoll || every > longestPoll {
		c.report(key+"/poll/every", "must be %s to %s", shortestPoll, broker.FormatDuration(longestPoll))
	}
}

// shortestToken is the shortest bearer token of a push, in characters.
const shortestToken = 20

// verification checks how verification events are requested.
func (c *checker) verification(key string, t *Transmitter, f *verificationFile) {
	if f == nil {
		return
	}
	t.Verification = *f
	t.Verification.TokenFile = c.path(f.TokenFile)
	c.endpoint(key+"/verification/endpoint", f.Endpoint, t.AllowPrivate)
	c.secret(key+"/verification/token_file", f.TokenFile)
	if f.StreamID == "" {
		c.report(key+"/verification/stream_id", "write the id of the stream at the transmitter")
	}
	if t.Verification.Every == 0 {
		t.Verification.Every = duration(defaultVerification)
	}
	if time.Duration(t.Verification.Every) < shortestEvery {
		c.report(key+"/verification/every", "must be at least %s", shortestEvery)
	}
}

// transmitterLimits checks times and shares.
func (c *checker) transmitterLimits(key string, t *Transmitter, f transmitterFile) {
	if t.MaxAge < shortestEventAge || t.MaxAge > longestEventAge {
		c.report(key+"/max_age", "must be %s to %s: it is how old an event may be, and so how long the broker may be down without missing one", broker.FormatDuration(shortestEventAge), broker.FormatDuration(longestEventAge))
	}
	if t.MostPercent < 1 || t.MostPercent > 100 {
		c.report(key+"/most_percent", "must be 1 to 100: the share of all leases that the events of a minute may end without a person's decision")
	}
	if t.Always < 0 {
		c.report(key+"/always", "must not be negative: it is how many leases the events of a minute may always end")
	}
	if t.Page == "" {
		c.warn(key, "nobody is notified if this transmitter would end too much: write page: with a group of groups.yaml")
	}
	switch {
	case f.OnStale != "" && f.OnStale != "end" && f.OnStale != "hold":
		c.report(key+"/on_stale", "choose end or hold: what becomes of running leases while the transmitter is silent")
	case t.StaleAfter == 0 && f.OnStale != "":
		c.report(key+"/on_stale", "needs stale_after")
	}
	if t.Hold = f.OnStale == "hold"; t.StaleAfter == 0 {
		return
	}
	if t.StaleAfter < shortestSilence || t.StaleAfter > longestSilence {
		c.report(key+"/stale_after", "must be %s to %s", shortestSilence, broker.FormatDuration(longestSilence))
	}
	every := time.Duration(cmp.Or(t.Verification.Every, t.Poll.Every))
	switch {
	case f.Verification == nil && f.Push != nil:
		c.report(key+"/stale_after", "needs verification: without it, a transmitter that pushes nothing can't be told from one that is down")
	case t.StaleAfter < 2*every:
		c.report(key+"/stale_after", "must be at least twice as long as the time between two signs of life, %s", broker.FormatDuration(every))
	}
}

// Open returns the protocol's side of a transmitter. It makes no calls.
func (t *Transmitter) Open() (cfg signals.Config, err error) {
	cfg = signals.Config{
		Name: t.Name, Issuer: t.Issuer, Audience: t.Audience, Subjects: t.Subjects, MaxAge: t.MaxAge, KeysURL: t.KeysURL, AllowPrivate: t.AllowPrivate,
	}
	if t.KeysFile != "" {
		if cfg.Keys, err = readKeys(t.KeysFile); err != nil {
			return cfg, err
		}
	}
	if t.CAFile != "" {
		if cfg.Roots, err = ReadRoots(t.CAFile); err != nil {
			return cfg, err
		}
	}
	secret := func(path string) signals.Secret {
		if path == "" {
			return nil
		}
		return func() (string, error) { return ReadSecret(path) }
	}
	for _, path := range t.PushTokens {
		cfg.Tokens = append(cfg.Tokens, secret(path))
	}
	if t.Poll.Endpoint != "" {
		cfg.Poll = &signals.Poll{Endpoint: t.Poll.Endpoint, Token: secret(t.Poll.TokenFile), Every: time.Duration(t.Poll.Every)}
	}
	if v := t.Verification; v.Endpoint != "" {
		cfg.Verification = &signals.Verification{Endpoint: v.Endpoint, StreamID: v.StreamID, Token: secret(v.TokenFile), Every: time.Duration(v.Every)}
	}
	return cfg, nil
}
