package aws

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"time"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/retryafter"
)

// refuse returns an error that a retry would not resolve.
func refuse(detail string) *broker.Refusal {
	return &broker.Refusal{Err: broker.ErrIssuerRefused, Detail: detail}
}

// refusals maps an error code of STS to the text for the caller (AWS STS API
// Reference, "Errors" of each action, and "Common Error Types").
var refusals = map[string]string{
	"AccessDenied":               textNoTrust,
	"AccessDeniedException":      textNoTrust,
	"MalformedPolicyDocument":    "AWS rejects the session policy: the operator has to check the actions and resources of the entitlement's scopes",
	"InvalidIdentityToken":       textBadAssertion,
	"IDPRejectedClaim":           textBadAssertion,
	"RegionDisabledException":    "STS is disabled in the issuer's region for the role's account",
	"InvalidClientTokenId":       textBadCredentials,
	"SignatureDoesNotMatch":      textBadCredentials,
	"UnrecognizedClient":         textBadCredentials,
	"IncompleteSignature":        textBadCredentials,
	"MissingAuthenticationToken": textBadCredentials,
}

// transient maps the codes of refusals that end when something is renewed or set: the
// caller may try again, and nothing is wrong with the request.
var transient = map[string]string{
	"IDPCommunicationError": "AWS could not reach the broker's JWKS: try again in a moment",
	"ExpiredToken":          textExpired, // of a signed request
	"ExpiredTokenException": textExpired, // of an assertion
	"RequestExpired":        textClock,
	"RequestTimeTooSkewed":  textClock,
	"RequestInTheFuture":    textClock,
}

// otherClock matches what STS answers to a signed request whose time it does not
// accept, with the code SignatureDoesNotMatch (AWS General Reference, "Troubleshooting
// Signature Version 4").
var otherClock = regexp.MustCompile(`^Signature (expired|not yet current):`)

const (
	textExpired = "what the broker proves itself to AWS with has expired by AWS's clock: the operator has to renew the broker's credentials, or to set its clock"
	textClock   = "AWS's clock and the broker's are minutes apart: the operator has to set the broker's clock"

	textNoTrust        = "AWS does not let the broker assume the role: the role's trust policy has to allow that, with tags and source identity"
	textBadAssertion   = "AWS does not accept the broker's assertion: the OpenID Connect provider at AWS has to name the broker's URL and audience, and AWS has to reach the broker's JWKS"
	textBadCredentials = "AWS does not accept the broker's own credentials: the operator has to renew them"
)

// throttled matches the codes of requests that come too fast. STS itself answers
// Throttling with status 400.
var throttled = regexp.MustCompile(`^(Throttling|ThrottlingException|ThrottledException|RequestThrottled|RequestLimitExceeded|TooManyRequestsException|SlowDown|SlowDownRead|SlowDownWrite)$`)

// retryAfter is when a throttled request may be repeated.
const retryAfter = 5 * time.Second

// noCode is the SDK's code for an answer without one, from a proxy for example.
const noCode = "UnknownError"

var (
	errorCode = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9.]{1,63}$`)
	requestID = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)
)

// failure converts an error of the SDK. The only words of AWS in the result are an
// error code and a request ID, which have alphabets of their own.
func failure(call string, err error) error {
	var refusal interface {
		ErrorCode() string
		ErrorMessage() string
	}
	var answer interface{ HTTPStatusCode() int }
	switch {
	case errors.Is(err, errNoCredentials):
		return &notIssued{error: fmt.Errorf("%w: calling %s: %w", broker.ErrIssuerUnavailable, call, errNoCredentials)}
	case !errors.As(err, &answer) || !errors.As(err, &refusal) || answer.HTTPStatusCode() >= 500 || !errorCode.MatchString(refusal.ErrorCode()) || refusal.ErrorCode() == noCode:
		return fmt.Errorf("%w: calling %s: %w", unavailable(err), call, noAnswer(err))
	}
	code, status := refusal.ErrorCode(), answer.HTTPStatusCode()
	refused := refusalOf(code, refusal.ErrorMessage(), status)
	if after := retryAfterOf(err); after > 0 && refused.Retry > 0 {
		refused.Retry = after
	}
	return &notIssued{
		error:   fmt.Errorf("calling %s: AWS answered %d, %s%s: %w", call, status, code, request(err), refused),
		expired: code == "ExpiredToken" || code == "InvalidClientTokenId",
	}
}

// unavailable returns the error for an STS that did not answer, with its own time for
// the next attempt if it named one.
func unavailable(err error) error {
	if after := retryAfterOf(err); after > 0 {
		return &broker.Refusal{Err: broker.ErrIssuerUnavailable, Detail: "AWS is not available: try again in " + broker.FormatDuration(after), Retry: after}
	}
	return broker.ErrIssuerUnavailable
}

// retryAfterOf returns the Retry-After of the answer in an error of the SDK.
func retryAfterOf(err error) time.Duration {
	var answer *awshttp.ResponseError
	if !errors.As(err, &answer) || answer.ResponseError == nil || answer.Response == nil {
		return 0
	}
	return retryafter.Parse(answer.Response.Header)
}

// refusalOf returns the error for a request that AWS refused.
func refusalOf(code, message string, status int) *broker.Refusal {
	text := transient[code]
	if code == "SignatureDoesNotMatch" && otherClock.MatchString(message) {
		text = textClock
	}
	switch {
	case throttled.MatchString(code) || status == http.StatusTooManyRequests:
		return &broker.Refusal{Err: broker.ErrIssuerUnavailable, Detail: "AWS gets too many requests: try again in a moment", Retry: retryAfter}
	case text != "":
		return &broker.Refusal{Err: broker.ErrIssuerUnavailable, Detail: text, Retry: retryAfter}
	case strings.Contains(message, "DurationSeconds"):
		return &broker.Refusal{Err: broker.ErrInvalidTTL, Detail: "the role makes no session that long: request a shorter ttl"}
	case code == "PackedPolicyTooLarge":
		// AWS packs policy, ARNs and tags together. No length that the broker can
		// compute predicts the packed size.
		return &broker.Refusal{Err: broker.ErrPolicyTooLarge, Detail: "the session policy is too large for AWS once packed: request fewer scopes, or use shorter parameters"}
	case refusals[code] != "":
		return refuse(refusals[code])
	}
	return refuse("AWS refused the request: the broker's log has the error code")
}

// request returns the ID by which AWS's support finds a request.
func request(err error) string {
	var answer interface{ ServiceRequestID() string }
	if !errors.As(err, &answer) || !requestID.MatchString(answer.ServiceRequestID()) {
		return ""
	}
	return ", request " + answer.ServiceRequestID()
}

// noAnswer returns why there is no answer, or none that can be read. A session may
// exist, and its secret is lost.
func noAnswer(err error) error {
	var dial *net.OpError
	var certificate *tls.CertificateVerificationError
	var large *http.MaxBytesError
	var answer interface{ HTTPStatusCode() int }
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("the caller disconnected: %w", context.Canceled)
	case errors.As(err, &large):
		return fmt.Errorf("the answer is larger than %d bytes", maxAnswer)
	case errors.As(err, &certificate):
		return fmt.Errorf("the server's certificate can't be verified: %w", certificate.Err)
	case errors.As(err, &dial):
		return fmt.Errorf("no answer: %w", dial)
	case errors.As(err, &answer) && answer.HTTPStatusCode() > http.StatusOK:
		return fmt.Errorf("the answer has status %d", answer.HTTPStatusCode())
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the connection ended before the answer")
	}
	return errors.New("the answer can't be read")
}
