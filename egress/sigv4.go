package egress

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"accessbroker.internal/api"
)

// Payload hashes of Amazon S3 that are no hash.
const (
	unsignedPayload = "UNSIGNED-PAYLOAD"
	unsignedTrailer = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
	serviceS3       = "s3"
)

// maxHashed bounds a body that is read as a whole, because its hash is in the header.
const maxHashed = 16 << 20

const contentSHA256 = "X-Amz-Content-Sha256"

// awsHeaders are further headers of a caller that calls to AWS may have. They describe
// the body.
var awsHeaders = []string{"X-Amz-Decoded-Content-Length", "X-Amz-Trailer", "X-Amz-Sdk-Checksum-Algorithm", "X-Amz-Checksum-Mode"}

// sign signs a call (AWS Signature Version 4). The caller's own signature is not among the
// headers of the call.
func (g *grant) sign(out *http.Request, callers http.Header, c *api.Credential, now time.Time) *Refusal {
	in := &g.egress.Inject
	credentials := aws.Credentials{AccessKeyID: c.Secret["access_key_id"], SecretAccessKey: c.Secret["secret_access_key"], SessionToken: c.Secret["session_token"]}
	if credentials.AccessKeyID == "" || credentials.SecretAccessKey == "" {
		return refuse(CodeNoCredential, nextOperator, "The credential has no keys of AWS")
	}
	if _, err := url.ParseQuery(out.URL.RawQuery); err != nil {
		return refuse(CodeInvalidURL, "percent-encode each parameter of the query", "The query can't be signed")
	}
	for name, values := range callers {
		for _, allowed := range awsHeaders {
			if strings.EqualFold(name, allowed) {
				out.Header[allowed] = values
			}
		}
	}
	hash, refusal := payloadHash(out, callers.Get(contentSHA256), in.Service)
	if refusal != nil {
		return refusal
	}
	if in.Service == serviceS3 {
		out.Header.Set(contentSHA256, hash)
	}
	plain := func(o *v4.SignerOptions) { o.DisableURIPathEscaping = in.Service == serviceS3 }
	if err := v4.NewSigner().SignHTTP(out.Context(), credentials, out, hash, in.Service, in.Region, now, plain); err != nil {
		return refuse(CodeNoCredential, nextOperator, "The call can't be signed")
	}
	return nil
}

// payloadHash returns the hash of a body for the signature. Amazon S3 accepts a body
// without one over TLS, so a body that is sent while it is read needs none.
func payloadHash(out *http.Request, callers, service string) (string, *Refusal) {
	mayOmit := service == serviceS3 && out.URL.Scheme == "https"
	switch {
	case strings.HasPrefix(callers, "STREAMING-") && !(callers == unsignedTrailer && mayOmit):
		return "", refuse(CodeHeader, "configure the client to send its bodies without signed chunks", "The body is signed in chunks with a key of the caller")
	case callers == unsignedTrailer:
		return callers, nil
	case out.Body == nil:
		return emptyHash, nil
	case isSHA256(callers):
		return callers, nil // the host compares it with the body
	case mayOmit:
		return unsignedPayload, nil
	}
	body, err := io.ReadAll(io.LimitReader(out.Body, maxHashed+1))
	if err != nil || len(body) > maxHashed {
		r := refuse(CodeRequestTooLarge, "send less", "The body can't be read, or is longer than %d bytes and can't be signed", maxHashed)
		r.Err = errors.Join(err)
		return "", r
	}
	out.ContentLength = int64(len(body))
	out.Body = struct {
		io.Reader
		io.Closer
	}{bytes.NewReader(body), out.Body}
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:]), nil
}

const emptyHash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func isSHA256(s string) bool {
	return len(s) == len(emptyHash) && strings.Trim(s, "0123456789abcdef") == ""
}

// escapeForAWS encodes segments as signatures of AWS demand: all but unreserved
// characters are encoded.
func escapeForAWS(segments []string) string {
	var out strings.Builder
	for _, segment := range segments {
		out.WriteByte('/')
		for i := range len(segment) {
			if b := segment[i]; isUnreserved(b) {
				out.WriteByte(b)
			} else {
				writeEncoded(&out, b)
			}
		}
	}
	return out.String()
}
