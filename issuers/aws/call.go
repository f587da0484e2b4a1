package aws

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"accessbroker.internal/broker"
)

// An awsClient sends a call, and bounds what it gets. An answer of STS has a
// few KB.
type awsClient struct{ http *http.Client }

const (
	awsAnswer  = 64 << 10 // bytes
	awsHeaders = 32 << 10

	// awsIdle is how long a connection is kept. STS closes those that are idle
	// for long, and a call on one that is being closed may be lost.
	awsIdle = 5 * time.Second
)

func newAWSClient(c *http.Client, roots *x509.CertPool) awsClient {
	if c == nil {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.Proxy, transport.MaxResponseHeaderBytes, transport.IdleConnTimeout = nil, awsHeaders, awsIdle
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
		c = &http.Client{Transport: transport}
	}
	direct := *c
	// Whatever STS answers, nobody else is asked.
	direct.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return awsClient{&direct}
}

// Do implements the SDK's HTTPClient. The SDK closes the body of a call as soon
// as the answer begins. A transport that still looks at it then takes that for
// a failed write, and drops the connection with the rest of the answer: so it
// gets a copy. By that it can also use another connection if STS had closed the
// one that it kept, as long as nothing was sent.
func (c awsClient) Do(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
	}
	call, err := http.NewRequestWithContext(r.Context(), r.Method, r.URL.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	call.Header, call.Host = r.Header, r.Host
	resp, err := c.http.Do(call)
	if err != nil {
		return nil, err
	}
	resp.Body = http.MaxBytesReader(nil, resp.Body, awsAnswer)
	return resp, nil
}

// awsOwn are the broker's own credentials. Its errors say nothing of what was
// found.
type awsOwn struct{ provider aws.CredentialsProvider }

var errAWSOwn = errors.New("the broker has no AWS credentials of its own")

// Retrieve implements aws.CredentialsProvider.
func (o awsOwn) Retrieve(ctx context.Context) (aws.Credentials, error) {
	c, err := o.provider.Retrieve(ctx)
	if err != nil {
		return aws.Credentials{}, errAWSOwn
	}
	return c, nil
}

// An awsSigner signs calls (AWS Signature Version 4). The SDK's own keeps what it
// derived from a secret by the name of the key alone: it would go on with a
// secret that was replaced.
type awsSigner struct{}

// SignHTTP implements the SDK's HTTPSignerV4.
func (awsSigner) SignHTTP(ctx context.Context, c aws.Credentials, r *http.Request, payload, service, region string, now time.Time, options ...func(*v4.SignerOptions)) error {
	return v4.NewSigner().SignHTTP(ctx, c, r, payload, service, region, now, options...)
}

// awsAssertionTime is how long an assertion can be used.
const awsAssertionTime = 5 * time.Minute

// assertion signs the assertion for a session. Its sub names the entitlement,
// so that a role's trust policy can admit one entitlement alone. AWS reads
// session tags and source identity from the token, not from the call (IAM User
// Guide, "Passing session tags using AssumeRoleWithWebIdentity" and "Monitor
// and control actions taken with assumed roles").
func (a *Issuer) assertion(s *awsSession, now time.Time) (string, error) {
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

// sign completes the claims of an assertion made at now, and signs them. STS
// can't verify EdDSA.
func (a *Issuer) sign(claims map[string]any, now time.Time) (string, error) {
	w := a.cfg.WebIdentity
	claims["iss"], claims["aud"] = w.Issuer, a.cfg.Audience()
	// An STS whose clock is behind ours rejects an assertion from the future.
	claims["iat"], claims["exp"] = now.Add(-awsClockSkew).Unix(), now.Add(awsAssertionTime).Unix()
	signed, err := w.Keys.Sign(claims, now, "ES256", "RS256")
	if err != nil {
		return "", fmt.Errorf("%w: signing an assertion for STS: %w", broker.ErrIssuerUnavailable, err)
	}
	return signed, nil
}

// refuseAWS makes the error for what would not become better by trying again.
func refuseAWS(detail string) error {
	return &broker.Refusal{Err: broker.ErrIssuerRefused, Detail: detail}
}

// awsRefusals says what a caller is told of STS's error codes (AWS STS API
// Reference, "Errors" of each action, and "Common Error Types").
var awsRefusals = map[string]string{
	"AccessDenied":               "AWS does not let the broker assume the role: its trust policy has to allow that, with tags and source identity",
	"AccessDeniedException":      "AWS does not let the broker assume the role: its trust policy has to allow that, with tags and source identity",
	"MalformedPolicyDocument":    "AWS does not understand the session policy: the actions and resources of the entitlement's scopes have to be checked",
	"InvalidIdentityToken":       awsDistrust,
	"IDPRejectedClaim":           awsDistrust,
	"ExpiredTokenException":      awsDistrust,
	"RegionDisabledException":    "STS is not switched on in the issuer's region for the role's account",
	"ExpiredToken":               awsUnknown,
	"InvalidClientTokenId":       awsUnknown,
	"SignatureDoesNotMatch":      awsUnknown,
	"UnrecognizedClient":         awsUnknown,
	"RequestExpired":             awsUnknown,
	"IncompleteSignature":        awsUnknown,
	"MissingAuthenticationToken": awsUnknown,
}

const (
	awsDistrust = "AWS does not accept the broker's assertion: its OpenID Connect provider has to name the broker's URL and audience, and AWS has to reach the broker's JWKS"
	awsUnknown  = "AWS does not accept the broker's own credentials: they have to be renewed"
)

// awsThrottles are the codes of calls that come too fast. STS itself says
// Throttling, with status 400.
var awsThrottles = regexp.MustCompile(`^(Throttling|ThrottlingException|ThrottledException|RequestThrottled|RequestLimitExceeded|TooManyRequestsException|SlowDown|SlowDownRead|SlowDownWrite)$`)

// awsPause is when a throttled call may be tried again.
const awsPause = 5 * time.Second

// awsFailure makes STS's error into ours. Nothing that STS wrote is in it but
// an error code and a request id, of their own alphabets.
func awsFailure(call string, err error) error {
	var refusal interface {
		ErrorCode() string
		ErrorMessage() string
	}
	var answer interface{ HTTPStatusCode() int }
	switch {
	case errors.Is(err, errAWSOwn):
		return &awsMadeNothing{fmt.Errorf("%w: calling %s: %w", broker.ErrIssuerUnavailable, call, errAWSOwn)}
	case !errors.As(err, &answer) || !errors.As(err, &refusal) || answer.HTTPStatusCode() >= 500 || !awsCode.MatchString(refusal.ErrorCode()) || refusal.ErrorCode() == awsNoCode:
		return fmt.Errorf("%w: calling %s: %w", broker.ErrIssuerUnavailable, call, awsSilence(err))
	}
	code, status := refusal.ErrorCode(), answer.HTTPStatusCode()
	return &awsMadeNothing{fmt.Errorf("calling %s: STS answered %d, %s%s: %w", call, status, code, awsRequest(err), awsRefusal(code, refusal.ErrorMessage(), status))}
}

func awsRefusal(code, message string, status int) error {
	switch {
	case awsThrottles.MatchString(code) || status == http.StatusTooManyRequests:
		return &broker.Refusal{Err: broker.ErrIssuerUnavailable, Detail: "AWS gets too many calls: try again in a moment", Retry: awsPause}
	case code == "IDPCommunicationError":
		return &broker.Refusal{Err: broker.ErrIssuerUnavailable, Detail: "AWS could not reach the broker's JWKS: try again in a moment", Retry: awsPause}
	case strings.Contains(message, "DurationSeconds"):
		return &broker.Refusal{Err: broker.ErrInvalidTTL, Detail: "the role makes no session that long: ask for a shorter ttl"}
	case code == "PackedPolicyTooLarge":
		return &broker.Refusal{Err: broker.ErrPolicyTooLarge, Detail: "what was asked for is too large for AWS once packed: ask for fewer scopes, or for shorter parameters"}
	case awsRefusals[code] != "":
		return refuseAWS(awsRefusals[code])
	}
	return refuseAWS("AWS refused: the operators find its reason in the broker's log")
}

// awsNoCode is the SDK's code for an answer without one, of a proxy for example.
const awsNoCode = "UnknownError"

var (
	awsCode      = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9.]{1,63}$`)
	awsRequestID = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)
)

// awsRequest names the call as AWS's support knows it.
func awsRequest(err error) string {
	var answer interface{ ServiceRequestID() string }
	if !errors.As(err, &answer) || !awsRequestID.MatchString(answer.ServiceRequestID()) {
		return ""
	}
	return ", request " + answer.ServiceRequestID()
}

// awsSilence says why there is no answer, or none that can be read: the
// session may exist, and nobody has it.
func awsSilence(err error) error {
	var dial *net.OpError
	var certificate *tls.CertificateVerificationError
	var large *http.MaxBytesError
	var answer interface{ HTTPStatusCode() int }
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("the caller went away: %w", context.Canceled)
	case errors.As(err, &large):
		return fmt.Errorf("the answer is larger than %d bytes", awsAnswer)
	case errors.As(err, &certificate):
		return fmt.Errorf("its certificate does not hold: %w", certificate.Err)
	case errors.As(err, &dial):
		return fmt.Errorf("no answer: %w", dial)
	case errors.As(err, &answer) && answer.HTTPStatusCode() > http.StatusOK:
		return fmt.Errorf("it answered with status %d", answer.HTTPStatusCode())
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the connection ended before the answer")
	}
	return errors.New("its answer can't be read")
}
