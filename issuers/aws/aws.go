// Package aws issues sessions of IAM roles through AWS STS, or another server with
// its API. A session ends at its expiry; IAM can deny its permissions earlier, see
// revoke.go.
package aws

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"

	"accessbroker.internal/broker"
	"accessbroker.internal/issuers/token"
)

// DefaultAudience is the default audience of assertions, as in AWS's
// documentation. No token issuer may use it, or the configured one: a workload
// with such a token could assume roles without the broker.
const DefaultAudience = "sts.amazonaws.com"

// Config configures how the broker reaches STS, and how it authenticates there: with
// either WebIdentity or AssumeRole.
type Config struct {
	Region      string // signs requests and selects AWS's endpoint; required even with Endpoint
	Endpoint    string // URL of another STS; empty: the region's own
	WebIdentity *WebIdentity
	AssumeRole  *AssumeRole
	HTTP        *http.Client   // nil: a client that uses no proxy. Redirects are never followed
	Roots       *x509.CertPool // for the certificate of STS; nil: the system's. Ignored if HTTP is set
	Now         func() time.Time
	Revoker     string              // ARN of the role that may deny sessions; empty: the broker's own credentials are used
	IAMEndpoint string              // URL of another IAM; empty: AWS's
	Getenv      func(string) string // for AssumeRole without a file; nil: the environment is not read
}

// WebIdentity authenticates the broker with assertions that it signs. AWS trusts
// it as an OpenID Connect provider, so the broker stores no secret of AWS.
type WebIdentity struct {
	Issuer    string      // the broker's external URL
	Audience  string      // empty: DefaultAudience
	Algorithm string      // of new signing keys, for Check while Keys is nil
	Keys      *token.Keys // required by New
}

// AssumeRole authenticates the broker with AWS credentials of its own.
type AssumeRole struct {
	CredentialsFile string // in the format of the AWS tools, read for each request; empty: see ambient
	Profile         string // empty: default
}

var regionName = regexp.MustCompile(`^[a-z]{2,5}(-[a-z]+)+-[0-9]{1,2}$`)

// Audience returns the audience that is reserved for the issuer's assertions; empty
// if it signs none.
func (c Config) Audience() string {
	if c.WebIdentity == nil {
		return ""
	}
	return cmp.Or(c.WebIdentity.Audience, DefaultAudience)
}

// Check calls bad for each mistake in the configuration, with the key in the
// issuer's aws ("region", "auth") and a sentence that says what to do.
func (c Config) Check(bad func(key, format string, args ...any)) {
	if !regionName.MatchString(c.Region) {
		bad("region", "give the region whose STS is used, such as eu-west-1")
	}
	if c.Endpoint != "" {
		c.checkEndpoint(bad)
	}
	if (c.WebIdentity == nil) == (c.AssumeRole == nil) {
		bad("auth", "choose one way for the broker to authenticate: {web_identity: {}} or {assume_role: {}}")
	}
	if c.Revoker != "" && (!roleARN.MatchString(c.Revoker) || len(c.Revoker) > maxPolicy) {
		bad("revoker_role_arn", "give the ARN of the role that may deny sessions, such as arn:aws:iam::123456789012:role/access-broker-revoker")
	}
	if w := c.WebIdentity; w != nil {
		w.check(c.Endpoint == "", bad)
	}
}

// checkEndpoint requires TLS except on loopback: an assertion that leaks can be
// used by anyone.
func (c Config) checkEndpoint(bad func(key, format string, args ...any)) {
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		bad("endpoint", "give the URL of the STS, such as https://minio.acme.test:9000")
		return
	}
	loopback := u.Hostname() == "localhost" || net.ParseIP(u.Hostname()).IsLoopback()
	if u.Scheme != "https" && (u.Scheme != "http" || !loopback) {
		bad("endpoint", "credentials are sent there: give an https URL")
	}
}

func (w *WebIdentity) check(isAWS bool, bad func(key, format string, args ...any)) {
	if w.Algorithm == "EdDSA" || w.Keys != nil && w.Keys.Algorithm() == "EdDSA" {
		bad("auth/web_identity", "STS can't verify EdDSA: choose ES256 or RS256 in server.signing.algorithm, or assume_role")
	}
	u, err := url.Parse(w.Issuer)
	if err != nil || u.Scheme != "https" {
		bad("auth/web_identity", "AWS accepts an OpenID Connect provider only over https: see server.external_url")
	} else if isAWS && u.Port() != "" {
		bad("auth/web_identity", "AWS accepts no OpenID Connect provider whose URL has a port: remove it from server.external_url, or use assume_role")
	}
	if len(w.Audience) > 255 {
		bad("auth/web_identity/audience", "AWS accepts at most 255 characters")
	}
}

// An Issuer issues sessions of roles. It is safe for concurrent use.
type Issuer struct {
	cfg Config
	own aws.CredentialsProvider // the broker's
	sts *sts.Client
	iam *iam.Client
}

var _ broker.Issuer = (*Issuer)(nil)

// New returns an issuer. It reads files and the environment only for AssumeRole,
// and makes no request.
func New(c Config) (*Issuer, error) {
	var errs []error
	c.Check(func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	})
	if c.WebIdentity != nil && c.WebIdentity.Keys == nil {
		errs = append(errs, errors.New("auth/web_identity: there are no signing keys"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	own, err := c.ownCredentials()
	if err != nil {
		return nil, err
	}
	a := &Issuer{cfg: c, own: own, sts: c.newSTS(own)}
	a.iam = a.newIAM(own)
	return a, nil
}

// newSTS returns a client that sends each request once: a retry after a lost
// answer would make a second session.
func (c Config) newSTS(own aws.CredentialsProvider) *sts.Client {
	options := sts.Options{
		Region: c.Region, HTTPClient: newHTTPClient(c.HTTP, c.Roots), Credentials: own,
		HTTPSignerV4: signer{}, Retryer: aws.NopRetryer{},
	}
	if c.Endpoint != "" {
		options.BaseEndpoint = &c.Endpoint
	}
	return sts.New(options)
}

// Prepare returns a handle if the entitlement lets the session be denied. A
// session needs no other preparation.
func (*Issuer) Prepare(_ context.Context, o broker.Order) (broker.Prepared, error) {
	if spec, ok := o.Entitlement.Spec.(*Spec); ok {
		return broker.Prepared{Handle: spec.denial()}, nil
	}
	return broker.Prepared{}, nil
}

// nothingIssued is the handle of a lease for which STS certainly issued no session.
// It is stored, and must not change.
const nothingIssued = "nothing was made"

// Issue asks STS for a session of the entitlement's role, once.
func (a *Issuer) Issue(ctx context.Context, o broker.Order) (broker.Credential, []byte, error) {
	c, err := a.issue(ctx, o)
	var none *notIssued
	if errors.As(err, &none) {
		return broker.Credential{}, []byte(nothingIssued), none.error
	}
	return c, nil, err
}

// notIssued is an error after which certainly no session exists.
type notIssued struct {
	error
	expired bool // the broker's own credentials, which may have been renewed meanwhile
}

// callTimeout bounds a request. STS answers within a second, and a slow answer
// leaves less of the lease's deadline for its record.
const callTimeout = 10 * time.Second

func (a *Issuer) issue(ctx context.Context, o broker.Order) (broker.Credential, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	sent := a.cfg.Now()
	s, err := newSession(&o, sent, time.Until(deadline))
	if err != nil {
		return broker.Credential{}, &notIssued{error: err}
	}
	made, err := a.session(ctx, s, sent)
	var none *notIssued
	if errors.As(err, &none) && none.expired && a.forget() {
		made, err = a.session(ctx, s, sent)
	}
	if err != nil {
		return broker.Credential{}, err
	}
	return s.credential(made, sent, a.cfg.Now())
}

// forget drops the broker's own credentials, so that they are fetched again. It returns
// false if they are not kept.
func (a *Issuer) forget() bool {
	kept, ok := a.own.(hidden)
	if !ok {
		return false
	}
	cache, ok := kept.provider.(*aws.CredentialsCache)
	if ok {
		cache.Invalidate()
	}
	return ok
}

func (a *Issuer) session(ctx context.Context, s *session, now time.Time) (*types.Credentials, error) {
	if a.cfg.WebIdentity != nil {
		return a.assumeByAssertion(ctx, s, now)
	}
	return a.assume(ctx, s)
}

func (a *Issuer) assume(ctx context.Context, s *session) (*types.Credentials, error) {
	input := &sts.AssumeRoleInput{
		RoleArn: &s.spec.role.RoleARN, RoleSessionName: aws.String(s.lease.ID.String()), SourceIdentity: aws.String(s.lease.Request.String()),
		Policy: &s.policy, PolicyArns: s.managedPolicies(), DurationSeconds: &s.seconds,
	}
	if s.spec.role.ExternalID != "" {
		input.ExternalId = &s.spec.role.ExternalID
	}
	tags := s.tags()
	for _, key := range []string{"entitlement", "holder", "request"} {
		input.Tags = append(input.Tags, types.Tag{Key: aws.String(key), Value: aws.String(tags[key])})
	}
	out, err := a.sts.AssumeRole(ctx, input)
	if err != nil {
		return nil, failure("AssumeRole", err)
	}
	answered, _ := awsmiddleware.GetServerTime(out.ResultMetadata)
	return a.byOurClock(out.Credentials, answered), nil
}

// byOurClock returns a session with its expiry by our clock if that is earlier: STS
// states it by its own. A session that STS makes shorter than requested would otherwise
// seem to last longer by as much as the clock of STS is ahead.
func (a *Issuer) byOurClock(c *types.Credentials, answered time.Time) *types.Credentials {
	ahead := answered.Sub(a.cfg.Now())
	if c == nil || c.Expiration == nil || ahead <= time.Second { // the Date header has whole seconds, or is missing
		return c
	}
	ours := *c
	ours.Expiration = aws.Time(c.Expiration.Add(-ahead))
	return &ours
}

func (a *Issuer) assumeByAssertion(ctx context.Context, s *session, now time.Time) (*types.Credentials, error) {
	assertion, err := a.assertion(s, now)
	if err != nil {
		return nil, &notIssued{error: err}
	}
	out, err := a.sts.AssumeRoleWithWebIdentity(ctx, &sts.AssumeRoleWithWebIdentityInput{
		RoleArn: &s.spec.role.RoleARN, RoleSessionName: aws.String(s.lease.ID.String()), WebIdentityToken: &assertion,
		Policy: &s.policy, PolicyArns: s.managedPolicies(), DurationSeconds: &s.seconds,
	})
	if err != nil {
		return nil, failure("AssumeRoleWithWebIdentity", err)
	}
	answered, _ := awsmiddleware.GetServerTime(out.ResultMetadata)
	return a.byOurClock(out.Credentials, answered), nil
}

const (
	assertionTTL = 5 * time.Minute

	// clockSkew bounds the difference between the clock of STS and ours.
	clockSkew = 2 * time.Minute
)

// assertion returns a signed assertion for a session. Its sub names the
// entitlement, so that a role's trust policy can admit one entitlement alone. AWS
// reads session tags and source identity from the assertion, not from the request
// (IAM User Guide, "Passing session tags using AssumeRoleWithWebIdentity" and
// "Monitor and control actions taken with assumed roles").
func (a *Issuer) assertion(s *session, now time.Time) (string, error) {
	tags := map[string][]string{}
	for tag, value := range s.tags() {
		tags[tag] = []string{value}
	}
	return a.sign(map[string]any{
		"sub":                                    "entitlement:" + s.lease.Entitlement,
		"jti":                                    s.lease.ID.String(),
		"https://aws.amazon.com/source_identity": s.lease.Request.String(),
		"https://aws.amazon.com/tags":            map[string]any{"principal_tags": tags},
	}, now)
}

// sign completes the claims of an assertion, and signs them. STS can't verify
// EdDSA.
func (a *Issuer) sign(claims map[string]any, now time.Time) (string, error) {
	w := a.cfg.WebIdentity
	claims["iss"], claims["aud"] = w.Issuer, a.cfg.Audience()
	// An STS whose clock is behind ours rejects an assertion from the future.
	claims["iat"], claims["exp"] = now.Add(-clockSkew).Unix(), now.Add(assertionTTL).Unix()
	signed, err := w.Keys.Sign(claims, now, "ES256", "RS256")
	if err != nil {
		return "", fmt.Errorf("%w: signing an assertion for STS: %w", broker.ErrIssuerUnavailable, err)
	}
	return signed, nil
}
