package aws

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/issuers/token"
)

// DefaultAudience is the audience of assertions if none is configured, as AWS's
// documentation has it. It is reserved, as is the configured one: no token that
// a workload can get may have it, or that workload could assume roles by itself.
const DefaultAudience = "sts.amazonaws.com"

// An Config says how the broker reaches STS, and how it proves itself there.
type Config struct {
	Region      string         // signs calls and picks AWS's endpoint; needed even with an endpoint
	Endpoint    string         // URL of an STS other than the region's own; empty: the region's
	WebIdentity *WebIdentity   // either this
	AssumeRole  *AssumeRole    // or this
	HTTP        *http.Client   // nil: one that knows no proxy. Redirects are never followed
	Roots       *x509.CertPool // of the STS's certificate; nil: the system's. Not with HTTP
	Now         func() time.Time
	Revoker     string // ARN of the role that may deny sessions; empty: the broker's own credentials may, or nothing does
	IAMEndpoint string // URL of an IAM other than AWS's; empty: AWS's
}

// WebIdentity lets the broker sign assertions, so that it needs no secret of
// AWS's: AWS trusts it as an OpenID Connect provider.
type WebIdentity struct {
	Issuer    string      // the broker's external URL
	Audience  string      // empty: DefaultAudience
	Algorithm string      // server.signing.algorithm, where there are no Keys yet: STS does not know EdDSA
	Keys      *token.Keys // not needed to Check and Compile
}

// AssumeRole lets the broker assume roles by AWS credentials of its own.
type AssumeRole struct {
	CredentialsFile string // in the AWS tools' format, read anew for each call; empty: where the SDK finds them
	Profile         string // empty: default
}

var awsRegion = regexp.MustCompile(`^[a-z]{2,5}(-[a-z]+)+-[0-9]{1,2}$`)

// Audience gives the audience that is reserved for the issuer's assertions;
// empty if it makes none.
func (c Config) Audience() string {
	if c.WebIdentity == nil {
		return ""
	}
	return cmp.Or(c.WebIdentity.Audience, DefaultAudience)
}

// Check says what is wrong with the configuration, by the key in the issuer's
// aws ("region", "auth") and in a sentence that says what to do.
func (c Config) Check(bad func(key, format string, args ...any)) {
	if !awsRegion.MatchString(c.Region) {
		bad("region", "give the region whose STS is asked, such as eu-west-1")
	}
	if c.Endpoint != "" {
		c.checkEndpoint(bad)
	}
	if (c.WebIdentity == nil) == (c.AssumeRole == nil) {
		bad("auth", "say how the broker proves itself, one way: {web_identity: {}} or {assume_role: {}}")
	}
	if c.Revoker != "" && (!awsRoleARN.MatchString(c.Revoker) || len(c.Revoker) > awsPolicyLength) {
		bad("revoker_role_arn", "give the ARN of the role that may deny sessions, such as arn:aws:iam::123456789012:role/access-broker-revoker")
	}
	if w := c.WebIdentity; w != nil {
		w.check(c.Endpoint == "", bad)
	}
}

// checkEndpoint wants TLS, but on loopback: who reads an assertion has it.
func (c Config) checkEndpoint(bad func(key, format string, args ...any)) {
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		bad("endpoint", "give the URL of the STS, such as https://minio.acme.test:9000")
		return
	}
	loopback := u.Hostname() == "localhost" || net.ParseIP(u.Hostname()).IsLoopback()
	if u.Scheme != "https" && (u.Scheme != "http" || !loopback) {
		bad("endpoint", "credentials travel by it: give an https URL")
	}
}

func (w *WebIdentity) check(isAWS bool, bad func(key, format string, args ...any)) {
	if w.Algorithm == "EdDSA" || w.Keys != nil && w.Keys.Algorithm() == "EdDSA" {
		bad("auth/web_identity", "STS can't verify EdDSA: choose ES256 or RS256 in server.signing.algorithm, or assume_role")
	}
	u, err := url.Parse(w.Issuer)
	if err != nil || u.Scheme != "https" {
		bad("auth/web_identity", "AWS takes an OpenID Connect provider by https only: see server.external_url")
	} else if isAWS && u.Port() != "" {
		bad("auth/web_identity", "AWS takes no OpenID Connect provider whose URL has a port: take it off server.external_url, or use assume_role")
	}
	if len(w.Audience) > 255 {
		bad("auth/web_identity/audience", "AWS takes 255 characters at most")
	}
}

// Issuer issues sessions of roles by STS. Only time ends them: AWS has no call
// that ends one. It is safe for concurrent use.
type Issuer struct {
	cfg Config
	sts *sts.Client
	iam *iam.Client
}

var _ broker.Issuer = (*Issuer)(nil)

// New makes an issuer. It reads no environment and no files unless the
// broker's own credentials come from there.
func New(ctx context.Context, c Config) (*Issuer, error) {
	var errs []error
	c.Check(func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	})
	if c.WebIdentity != nil && c.WebIdentity.Keys == nil {
		errs = append(errs, errors.New("auth/web_identity: there are no keys to sign with"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	client := newAWSClient(c.HTTP, c.Roots)
	credentials, err := c.ownCredentials(ctx)
	if err != nil {
		return nil, err
	}
	options := sts.Options{
		Region: c.Region, HTTPClient: client, Credentials: credentials, HTTPSignerV4: awsSigner{},
		// A second try after a lost answer would make a second credential.
		Retryer: aws.NopRetryer{},
	}
	if c.Endpoint != "" {
		options.BaseEndpoint = &c.Endpoint
	}
	a := &Issuer{cfg: c, sts: sts.New(options)}
	a.iam = a.newIAM(client, credentials)
	return a, nil
}

// ownCredentials gives what the broker's calls are signed by; those that bring
// an assertion are not signed.
func (c Config) ownCredentials(ctx context.Context) (aws.CredentialsProvider, error) {
	switch a := c.AssumeRole; {
	case a == nil:
		return aws.AnonymousCredentials{}, nil
	case a.CredentialsFile != "":
		if _, err := a.read(ctx); err != nil {
			return nil, fmt.Errorf("auth/assume_role: %s has no profile %q with an access key and a secret", a.CredentialsFile, cmp.Or(a.Profile, "default"))
		}
		return awsOwn{aws.CredentialsProviderFunc(a.read)}, nil
	}
	options := []func(*config.LoadOptions) error{config.WithRegion(c.Region)}
	if c.AssumeRole.Profile != "" {
		options = append(options, config.WithSharedConfigProfile(c.AssumeRole.Profile))
	}
	loaded, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("looking for the broker's own AWS credentials: %w", err)
	}
	return awsOwn{loaded.Credentials}, nil
}

// read reads the credentials file: it may have been replaced since.
func (a *AssumeRole) read(ctx context.Context) (aws.Credentials, error) {
	profile, err := config.LoadSharedConfigProfile(ctx, cmp.Or(a.Profile, "default"), func(o *config.LoadSharedConfigOptions) {
		o.CredentialsFiles, o.ConfigFiles = []string{a.CredentialsFile}, []string{}
	})
	if err == nil && !profile.Credentials.HasKeys() {
		err = errors.New("no access key and secret")
	}
	return profile.Credentials, err
}

// Prepare has nothing to make: a session ends by time. It says how to deny one,
// where that is wanted.
func (*Issuer) Prepare(_ context.Context, o broker.Order) (broker.Prepared, error) {
	if spec, ok := o.Entitlement.Spec.(*Spec); ok {
		return broker.Prepared{Handle: spec.denial()}, nil
	}
	return broker.Prepared{}, nil
}

// awsNothing is the handle of a lease for which STS is known to have made
// nothing.
const awsNothing = "nothing was made"

// Revoke says that only time ends a session, and has it denied where the
// entitlement says so.
func (a *Issuer) Revoke(ctx context.Context, l broker.Lease) error {
	switch {
	case string(l.Handle) == awsNothing:
		return nil
	case len(l.Handle) == 0:
		return broker.ErrNotRevocable
	}
	d, ok := a.denialOf(l)
	if !ok {
		return broker.ForeignLease(l)
	}
	return a.revoke(ctx, l, d)
}

var awsRoleName = regexp.MustCompile(`^[\w+=,.@-]{1,64}$`)

// Issue has STS make a session of the entitlement's role, by one call that is
// never repeated.
func (a *Issuer) Issue(ctx context.Context, o broker.Order) (broker.Credential, []byte, error) {
	c, err := a.issue(ctx, o)
	var nothing *awsMadeNothing
	if errors.As(err, &nothing) {
		return broker.Credential{}, []byte(awsNothing), nothing.error
	}
	return c, nil, err
}

// An awsMadeNothing is an error after which it is known that there is no
// session.
type awsMadeNothing struct{ error }

// awsCallTime bounds a call. STS answers within a second; what a slow call
// takes of a lease's deadline is missing for its record.
const awsCallTime = 10 * time.Second

func (a *Issuer) issue(ctx context.Context, o broker.Order) (broker.Credential, error) {
	ctx, cancel := context.WithTimeout(ctx, awsCallTime)
	defer cancel()
	deadline, _ := ctx.Deadline()
	sent := a.cfg.Now()
	s, err := newAWSSession(&o, sent, time.Until(deadline))
	if err != nil {
		return broker.Credential{}, &awsMadeNothing{err}
	}
	var made *types.Credentials
	if a.cfg.WebIdentity != nil {
		made, err = a.assumeByAssertion(ctx, s, sent)
	} else {
		made, err = a.assume(ctx, s)
	}
	if err != nil {
		return broker.Credential{}, err
	}
	return s.credential(made, sent, a.cfg.Now())
}

var errTooShortForAWS = &broker.Refusal{Err: broker.ErrInvalidTTL, Detail: fmt.Sprintf("AWS makes no credential for less than %s: ask for a longer ttl", broker.Short(MinTTL))}

// An awsSession is what STS is asked for.
type awsSession struct {
	spec    *Spec
	lease   *broker.Lease
	policy  string
	seconds int32
}

// newAWSSession works out the session for a lease at now, if STS may take up to
// slack to get the call.
func newAWSSession(o *broker.Order, now time.Time, slack time.Duration) (*awsSession, error) {
	if o.Entitlement == nil {
		return nil, errors.New("there is no entitlement")
	}
	spec, ok := o.Entitlement.Spec.(*Spec)
	if !ok {
		return nil, fmt.Errorf("the entitlement %q was not compiled for AWS", o.Entitlement.Name)
	}
	policy, err := spec.SessionPolicy(o.Lease.Scopes, o.Lease.Parameters)
	if err != nil {
		return nil, err
	}
	s := &awsSession{spec: spec, lease: &o.Lease, policy: policy}
	left := o.Lease.Expires.Sub(now)
	if left < MinTTL-broker.IssueDeadline {
		return nil, errTooShortForAWS
	}
	s.seconds = awsSeconds(left, slack)
	return s, nil
}

// awsSeconds is how long a session must be so that it ends with its lease. STS
// counts from when it gets the call, which can be as late as the call's
// deadline. Only where that is less than STS's least does a session outlive its
// lease, by no more than the call took.
func awsSeconds(left, slack time.Duration) int32 {
	return int32(min(max(left-slack, MinTTL), MaxTTL) / time.Second)
}

func (s *awsSession) managedPolicies() []types.PolicyDescriptorType {
	var list []types.PolicyDescriptorType
	for _, arn := range s.spec.role.ManagedPolicies {
		list = append(list, types.PolicyDescriptorType{Arn: aws.String(arn)})
	}
	return list
}

// tags lead from AWS to the record, and let the role's policies tell sessions
// apart. None is transitive: they are of this session.
func (s *awsSession) tags() map[string]string {
	return map[string]string{
		"holder": awsTag(s.lease.Holder), "entitlement": awsTag(s.lease.Entitlement), "request": s.lease.Request.String(),
	}
}

// awsTagValue is what AWS takes as the value of a session tag, of awsTagLength
// characters at most. (Counted in the expression, that would cost ten megabytes.)
var awsTagValue = regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+\-@]+$`)

const awsTagLength = 256

// awsTag gives a text as the value of a session tag: its SHA-256 if AWS would
// not take it.
func awsTag(s string) string {
	if utf8.RuneCountInString(s) <= awsTagLength && awsTagValue.MatchString(s) {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func (a *Issuer) assume(ctx context.Context, s *awsSession) (*types.Credentials, error) {
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
		return nil, awsFailure("AssumeRole", err)
	}
	return out.Credentials, nil
}

func (a *Issuer) assumeByAssertion(ctx context.Context, s *awsSession, now time.Time) (*types.Credentials, error) {
	assertion, err := a.assertion(s, now)
	if err != nil {
		return nil, &awsMadeNothing{err}
	}
	out, err := a.sts.AssumeRoleWithWebIdentity(ctx, &sts.AssumeRoleWithWebIdentityInput{
		RoleArn: &s.spec.role.RoleARN, RoleSessionName: aws.String(s.lease.ID.String()), WebIdentityToken: &assertion,
		Policy: &s.policy, PolicyArns: s.managedPolicies(), DurationSeconds: &s.seconds,
	})
	if err != nil {
		return nil, awsFailure("AssumeRoleWithWebIdentity", err)
	}
	return out.Credentials, nil
}

// awsClockSkew is how far STS's clock may be from ours.
const awsClockSkew = 2 * time.Minute

// credential takes over what STS made. It ends with the lease, or earlier, by
// STS's word or by our own clock, whichever is first: a clock that is ahead
// gives nothing more. What lives much longer than asked is not handed out.
func (s *awsSession) credential(made *types.Credentials, sent, now time.Time) (broker.Credential, error) {
	if made == nil || made.Expiration == nil || aws.ToString(made.AccessKeyId) == "" || aws.ToString(made.SecretAccessKey) == "" || aws.ToString(made.SessionToken) == "" {
		return broker.Credential{}, fmt.Errorf("%w: STS answered without a credential", broker.ErrIssuerUnavailable)
	}
	asked := time.Duration(s.seconds) * time.Second
	if made.Expiration.After(now.Add(asked + awsClockSkew)) {
		return broker.Credential{}, fmt.Errorf("%w: STS made a credential that lives longer than was asked for", broker.ErrIssuerUnavailable)
	}
	expires := s.lease.Expires
	for _, t := range []time.Time{*made.Expiration, sent.Add(asked)} {
		if t.Before(expires) {
			expires = t.Truncate(time.Second)
		}
	}
	if !expires.After(now) {
		return broker.Credential{}, fmt.Errorf("%w: STS made a credential that has expired by our clock", broker.ErrIssuerUnavailable)
	}
	fields := map[string]string{"access_key_id": *made.AccessKeyId, "secret_access_key": *made.SecretAccessKey, "session_token": *made.SessionToken}
	hash, _ := audit.Commit(string(audit.AppendStrings(nil, fields)))
	return broker.Credential{
		Type: "aws", Secret: broker.NewSecret(fields), Expires: expires.UTC(), Revocation: broker.RevokedAtExpiry, Hash: hash,
	}, nil
}
