// Package scrub removes credentials from what other systems answer, while the answer
// streams through.
//
// A Scrubber replaces every byte of a secret by "*". The length of the text stays, so
// that the framing of a protocol stays true. It finds a secret of at least [MinLength]
// bytes in these forms, in either case of ASCII letters:
//
//   - as it is, in UTF-16, UTF-32 and Latin-1;
//   - in base64 with the standard and the URL alphabet, at all three alignments, padded
//     or not, with line breaks; also base64 in base64, and base64 of a secret that is
//     escaped for JSON or a URL;
//   - in hexadecimal digits, with line breaks, colons or spaces; as a list of decimal numbers;
//   - with any of its characters escaped: %41 and + for a space, \u0041, \x41, \101, \/
//     and the like, &#65;, &#x41; and &quot;. Escapes of escapes count to a depth of
//     three: \\u0041, %5Cu0041, %2541. The forms above can be escaped, too.
//
// A secret with line breaks, such as a private key, is found line by line. The signature
// of a JSON Web Token is a secret of its own: claims and signature make a token.
//
// # Speed
//
// A reader passes on text, JSON and binary data at several hundred megabytes per second
// and core, without allocations per read. An answer that consists of escapes is the
// slowest: the bound is 15 MB/s for up to 8 secrets. A long escaped start of a secret is
// searched anew with each read until it ends.
//
// # Limits
//
// A shorter secret is not removed: [Protects] reports whether a text is long enough. The
// first and the last character of a base64 form can stay; they hold up to four bits of
// the secret's first or last byte. What a text was compressed or encrypted into, is not
// found, except for the content codings that [Scrubber.Response] decodes. A server that
// intends to smuggle a secret out can use a form that is not in this list.
package scrub
