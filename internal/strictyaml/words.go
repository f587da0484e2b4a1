package strictyaml

import (
	"fmt"
	"regexp"
	"strings"
)

// libraryTexts are parts of the messages of the YAML library, and what the operator can
// do about the mistake.
var libraryTexts = []struct{ part, text string }{
	{"tab character", "a tab is not allowed here: indent with spaces"},
	{"cannot start any token", "a tab is not allowed here: indent with spaces"},
	{"'}' must be specified", "a comma or the closing } is missing"},
	{"flow mapping end token", "the closing } is missing"},
	{"flow map content", "a comma or the closing } is missing"},
	{"corresponding to '}'", "there is no { for this }"},
	{"']' must be specified", "a comma or the closing ] is missing"},
	{"sequence end token", "the closing ] is missing"},
	{"but found ','", "a value is missing before this comma"},
	{"corresponding to ']'", "there is no [ for this ]"},
	{"end character of double-quoted text", "the closing quotation mark is missing"},
	{"end character of single-quoted text", "the closing apostrophe is missing"},
	{"unknown escape character", `a backslash in quotation marks begins an escape, such as \n: write \\, or use apostrophes`},
	{"for escaped UTF-", "the escape in this text is incomplete or is no character: write the character itself"},
	{"surrogate", "the escape in this text is incomplete or is no character: write the character itself"},
	{"is a reserved character", "a text can't begin with this character: quote the text"},
	{"non-map value is specified", "this line has no key: write key: value, with a space after the colon"},
	{"expected map key-value delimiter", "this line has no key: write key: value, with a space after the colon"},
	{"unexpected key name", "what precedes this colon is not one line: write key: value in each line, and quote a key of several lines"},
	{"implicit line break", "what precedes this colon is not one line: write key: value in each line, and quote a key of several lines"},
	{"block sequence entries are not allowed", "a list can't begin here: begin it on its own line, or write [a, b]"},
	{"sequence entries are not allowed", "a list can't begin here: begin it on its own line, or write [a, b]"},
	{"anchor", "an anchor or alias can't be used in this way: write the value out"},
	{"alias", "an anchor or alias can't be used in this way: write the value out"},
	{"merge key", "<< needs a mapping, such as *name, or a list of them"},
	{"tag", "a tag can't be used in this way: remove it"},
	{"YAML version", "a line or a text can't begin with %: remove the line, or quote the text"},
	{"directive", "a line or a text can't begin with %: remove the line, or quote the text"},
	{"document separator", "the line --- separates documents and has no other text"},
	{"mapping value is not allowed", "a key can't be here: check the indentation, and quote a text with a colon"},
	{"map key", "a key can't be here: check the indentation, and quote a text with a colon"},
	{"map value", "a key has no value here: check the indentation"},
	{"invalid key", "a key can't be here: check the indentation, and quote a text with a colon"},
	{"not allowed in this context", "this value can't be here: check the indentation, and quote a text with a colon"},
	{"unexpected scalar value", "this value can't be here: check the indentation, and quote a text with a colon"},
	{"unexpected end content", "this value can't be here: check the indentation, and quote a text with a colon"},
	{"multi-line content", "the text of several lines is missing: indent it below its key"},
}

var twice = regexp.MustCompile(`^mapping key (".*") already defined at \[([0-9]+):[0-9]+\]$`)

// inWords returns a message of the YAML parser in words that say what to write.
func inWords(message string) string {
	if m := twice.FindStringSubmatch(message); m != nil {
		return fmt.Sprintf("the key %s is also in line %s: remove one of them", m[1], m[2])
	}
	for _, known := range libraryTexts {
		if strings.Contains(message, known.part) {
			return known.text
		}
	}
	return "this is not valid YAML: check the indentation, the quotation marks and the brackets"
}
