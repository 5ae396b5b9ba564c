// How the functions that Rust calls report errors: nothing throws into Rust. Each that can fail returns null, or a message that
// Rust gives back to `tercet_free_message`.
#pragma once
#include <cstdlib>
#include <cstring>
#include <exception>

#include <c10/util/Exception.h>

namespace tercet {

// What is said when there is no memory for a message: null would mean that all is well.
inline char no_memory_for_a_message[] = "out of memory";

inline char* message_of(const char* text) {
    char* copy = strdup(text);
    return copy ? copy : no_memory_for_a_message;
}

inline void free_message(char* message) {
    if (message != no_memory_for_a_message) free(message);
}

// Runs f; an exception becomes a message.
template <class F> char* guarded(F f) {
    try {
        f();
        return nullptr;
    } catch (const c10::Error& e) {
        return message_of(e.what_without_backtrace());
    } catch (const std::exception& e) {
        return message_of(e.what());
    } catch (...) {
        return message_of("an exception that is not std::exception");
    }
}

}  // namespace tercet
